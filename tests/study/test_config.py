"""Configurations are checked before anything runs, and mistakes are named."""

import json

import pytest
import yaml

from jaxmlip.potentials.chgnet import CHGNetModel
from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.study.clusters_to_bulk.config import ClustersToBulk
from jaxmlip.study.config import load_config, schema, template
from jaxmlip.study.cross_functional.config import CrossFunctional
from jaxmlip.study.section import ConfigError
from jaxmlip.study.train_one import TrainOne
from jaxmlip.training.strategies.continued import SingleFidelity
from jaxmlip.training.strategies.fresh import Differential, Direct
from jaxmlip.training.strategies.multi_fidelity import MultiFidelity


@pytest.fixture
def quick(tmp_path):
    path = tmp_path / "quick.yaml"
    path.write_text("study: clusters_to_bulk\nname: small\nsystem: {molecules: 32}\nstrategies: [direct]\n")
    return path


def test_overrides_are_nested_and_typed(quick):
    config = load_config(quick, ["seed=7", "system.temperature_K=200", "strategies=[multi_fidelity, direct]"])
    assert isinstance(config, ClustersToBulk)
    assert (config.seed, config.system.temperature_K, config.system.molecules) == (7, 200.0, 32)
    assert [strategy.name for strategy in config.strategies] == ["multi_fidelity", "direct"]


def test_strategies_take_parameters(quick):
    override = (
        "strategies=[direct, {name: multi_fidelity, replay: 0.25}, {name: direct, title: slow, training: {seed: 1}}]"
    )
    config = load_config(quick, [override])
    assert isinstance(config, ClustersToBulk)
    slow = Direct(title="slow", training={"seed": 1})
    assert config.strategies == [Direct(), MultiFidelity(replay=0.25), slow]
    assert [strategy.called for strategy in config.strategies] == ["direct", "multi_fidelity", "slow"]


def test_names_stand_for_the_strategies_of_the_file(quick):
    """A part of a study is a part of it; what the file does not have is as by default."""
    entries = "[direct, {name: multi_fidelity, replay: 0.25}, {name: differential, title: slow}]"
    quick.write_text(quick.read_text().replace("[direct]", entries))
    config = load_config(quick, ["strategies=[multi_fidelity, slow, single_fidelity]"])
    assert isinstance(config, ClustersToBulk)
    assert config.strategies == [MultiFidelity(replay=0.25), Differential(title="slow"), SingleFidelity()]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sytem.molecules=32", "unknown key sytem; did you mean system?"),
        ("system.molecule=32", "unknown key system.molecule; did you mean molecules?"),
        ("student.chanels=8", "unknown key student.chanels; did you mean channels?"),
        ("student={kind: chgnet, channels: 8}", "unknown key student.channels; the keys here are kind"),
        ("student.kind=painn", "student: .*'painn'.* 'equivariant', 'chgnet'"),
        ("strategies=[{name: multi_fidelity, repaly: 1}]", "did you mean replay?"),
        ("strategies=[magic]", "magic"),
        ("strategies=[{name: direct, training: {epoch: 3}}]", "direct.training: .*epoch: Extra inputs"),
        (
            "strategies=[direct, {name: direct, references: residual}]",
            "direct is there more than once; give .* a title",
        ),
        ("system.molecules=many", "system.molecules: .*integer.*'many'"),
        ("seed", "not of the form key=value"),
        ("seed.deep=1", "sets a key below seed, which is a single value"),
        ("study=alchemy", "the studies are clusters_to_bulk, cross_functional, learning_curve, train"),
        ("name=../up", "name: .*pattern"),
    ],
)
def test_mistakes_are_named(quick, override, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_config(quick, ["seed=0", override])


def test_architectures(quick):
    """Without a kind they are equivariant, and resolved configurations are what they were before there were kinds."""
    config = load_config(quick, ["student.channels=8"])
    assert isinstance(config, ClustersToBulk)
    assert config.student == Equivariant(channels=8)
    assert "kind" not in config.model_dump(mode="json")["student"]
    assert load_config(quick, ["student={kind: equivariant, channels: 8}"]) == config
    config = load_config(quick, ["student.kind=chgnet"])
    assert isinstance(config, ClustersToBulk)
    assert config.student == CHGNetModel()
    assert ClustersToBulk.model_validate(config.model_dump(mode="json")) == config


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"no configuration file .*absent\.yaml"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="no mapping of keys"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not a readable YAML"):
        load_config(tmp_path / "broken.yaml")


@pytest.mark.parametrize("kind", ["clusters_to_bulk", "cross_functional", "train"])
def test_template_and_schema_describe_the_model(tmp_path, kind):
    model = {"clusters_to_bulk": ClustersToBulk, "cross_functional": CrossFunctional, "train": TrainOne}[kind]
    text = template(kind)
    path = tmp_path / "template.yaml"
    path.write_text(text)
    assert load_config(path) == model.model_validate(yaml.safe_load(text))
    assert "  # " in text
    properties = schema(kind)["properties"]
    assert set(properties) == set(model.model_fields)
    json.dumps(properties)
