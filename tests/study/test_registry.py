"""A strategy and a study from outside, one file: in configurations, the command line and results."""

import json
import sys
import textwrap
from typing import Literal

import numpy as np
import pytest
import yaml
from ase import Atoms
from typer.testing import CliRunner

from jaxmlip.cli import app
from jaxmlip.potentials.files import load, read_header
from jaxmlip.registry import IMPORTED
from jaxmlip.study import plots
from jaxmlip.study.registry import STUDIES, register_study, study_of
from jaxmlip.study.section import Section
from jaxmlip.systems.dataset import Frame, write_frames
from jaxmlip.training.strategies.fresh import Direct
from jaxmlip.training.strategies.registry import STRATEGIES, register_strategy

OUTSIDE = '''
"""Somebody else's module."""

from pathlib import Path
from typing import Literal

import pydantic

import jaxmlip as jm
from jaxmlip.study.registry import register_study
from jaxmlip.study.section import Section
from jaxmlip.training.strategies.fresh import Direct


@jm.register_strategy
class Raised(Direct):
    """Direct, with every atom's energy raised."""

    name: Literal["raised"] = "raised"
    by: float = pydantic.Field(default=1.0, description="eV")

    def deploy(self, trained):
        plain = super().deploy(trained)
        return plain.replace(shift=plain.shift + self.by)


class Counting(Section):
    """Counts letters."""

    study: Literal["counting"] = "counting"
    name: str = pydantic.Field(default="letters", description="what is counted")
    strategies: list[str] = []


@register_study(Counting, told=lambda result, folder: f"{result} letters")
def count(config: Counting, folder: Path, *, progress: bool = True) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "count.txt").write_text(str(len(config.name)))
    return len(config.name)
'''

STUDENT = {"channels": 2, "layers": 1, "l_max": 0, "correlation": 1, "radial_mlp": [4], "cutoff": 3.0}


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The folder of the module, which is where the command is called from."""
    (tmp_path / "somebodys_module.py").write_text(textwrap.dedent(OUTSIDE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("somebodys_module", None)
    IMPORTED.clear()
    for registry, name in ((STRATEGIES, "raised"), (STUDIES, "counting")):
        registry.pop(name, None)
        registry._owners.pop(name, None)


def called(*words: str):
    return CliRunner().invoke(app, list(words))


def molecules() -> list[Frame]:
    """Hydrogen, stretched along a spring."""
    frames = []
    for length in np.linspace(0.65, 0.95, 6):
        pull = 35.0 * (length - 0.75)
        forces = np.array([[pull, 0, 0], [-pull, 0, 0]])
        frames.append(Frame(Atoms("H2", [[0, 0, 0], [length, 0, 0]]), 0.5 * 35.0 * (length - 0.75) ** 2 - 6.8, forces))
    return frames


def test_a_strategy_from_outside(outside):
    """Trained by the command line, with a field of its own; the schema and the template know it, and figures too."""
    write_frames(outside / "h2.extxyz", molecules())
    config = {"study": "train", "name": "h2", "data": {"path": "h2.extxyz"}, "student": STUDENT}
    config |= {"training": {"epochs": 1}, "validation_fraction": 0.4, "strategy": {"name": "raised", "by": 2.5}}
    (outside / "high.yaml").write_text(yaml.safe_dump(config))
    assert "Input tag 'raised'" in called("train", "high.yaml").output
    done = called("--import", "somebodys_module", "train", "high.yaml", "--out", "high", "--quiet")
    assert done.exit_code == 0, done.output
    # The references are a least-squares fit, so that nothing is left of the mean energy but what the strategy adds.
    high = load(str(outside / "high" / "potential.jaxmlip"))
    np.testing.assert_allclose(high.shift, 2.5, atol=1e-9)  # pyright: ignore[reportAttributeAccessIssue]
    header = read_header(outside / "high" / "potential.jaxmlip")["provenance"]["config"]["strategy"]
    assert (header["name"], header["by"]) == ("raised", 2.5)
    schema = json.loads(called("--import", "somebodys_module", "config", "schema", "train").output)
    assert schema["$defs"]["Raised"]["properties"]["by"]["description"] == "eV"
    misspelt = called("--import", "somebodys_module", "train", "high.yaml", "strategy.bye=1").output
    assert "unknown key strategy.raised.bye; did you mean by?" in misspelt
    assert plots.strategy_color("raised").startswith("#")


def test_a_study_from_outside(outside):
    (outside / "count.yaml").write_text("study: counting\nname: abcd\n")
    before = called("run", "count.yaml")
    assert (
        "study is 'counting'; the studies are clusters_to_bulk, cross_functional, learning_curve, train"
        in before.output
    )
    planned = called("--import", "somebodys_module", "run", "count.yaml", "--dry-run")
    assert "counting in runs/abcd: the configuration can be used; which stages it has" in planned.output
    shared = called("--import", "somebodys_module", "run", "count.yaml", "workers=2")
    assert "the study counting is one piece of work, which cannot be shared; leave workers out" in shared.output
    assert not (outside / "runs").exists()
    done = called("--import", "somebodys_module", "run", "count.yaml", "name=abcdef")
    assert done.output == "6 letters\n"
    assert (outside / "runs" / "abcdef" / "count.txt").read_text() == "6"
    assert "use `jaxmlip run count.yaml`" in called("--import", "somebodys_module", "train", "count.yaml").output
    assert (
        "name: letters  # what is counted"
        in called("--import", "somebodys_module", "config", "template", "counting").output
    )


def test_a_study_is_found_by_its_configuration_alone(monkeypatch):
    """A worker has imported the module of the configuration, and not the one that runs it."""
    from jaxmlip.study import cross_functional
    from jaxmlip.study.cross_functional import run
    from jaxmlip.study.cross_functional.config import CrossFunctional

    monkeypatch.setattr(cross_functional, "run", run)  # so that it is put back
    monkeypatch.setitem(sys.modules, run.__name__, run)
    monkeypatch.setitem(STUDIES, "cross_functional", STUDIES["cross_functional"])
    del sys.modules[run.__name__], STUDIES["cross_functional"]
    assert study_of(CrossFunctional()).config is CrossFunctional
    assert sys.modules[run.__name__] is not run


def test_mistakes_are_named(outside):
    assert (
        "Error: No module named 'nobodys_module'" in called("--import", "nobodys_module", "config", "template").output
    )

    class Nameless(Direct):
        """Without a name of its own."""

        name: str = "nameless"

    with pytest.raises(ValueError, match="Nameless has no name to be registered by; give it a field"):
        register_strategy(Nameless)

    class Taken(Direct):
        """With a name that is taken."""

        name: Literal["direct"] = "direct"

    STRATEGIES.ours()
    with pytest.raises(
        ValueError, match=r"strategy 'direct' is that of jaxmlip\..*:Direct already; choose another name"
    ):
        register_strategy(Taken)
    with pytest.raises(ValueError, match="Section needs a field study: Literal"):
        register_study(Section, told=lambda result, folder: "")
