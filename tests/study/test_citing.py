"""What is in a run is cited, each work once, and each has an entry that BibTeX can read."""

import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from jaxmlip.cli import app
from jaxmlip.potentials.files import load, save
from jaxmlip.potentials.potential import Sum
from jaxmlip.simulation.ensembles import NVTVelocityRescaling
from jaxmlip.simulation.simulate import simulate
from jaxmlip.study.citing import (
    ALWAYS,
    CALCULATORS,
    ENSEMBLES,
    KINDS,
    SIMULATED,
    STRATEGIES,
    STUDIES,
    WORDS,
    bibtex,
    references,
)
from jaxmlip.systems.ice import ice_ih
from jaxmlip.training.strategies.registry import STRATEGIES as ALL_STRATEGIES

STUDENT = Path(__file__).parents[1] / "simulation" / "data" / "ice_student.jaxmlip"


def test_every_work_has_an_entry() -> None:
    tables = [KINDS, CALCULATORS, ENSEMBLES, STRATEGIES, STUDIES, *WORDS.values()]
    keys = [*ALWAYS, *SIMULATED, *(key for table in tables for keys in table.values() for key in keys)]
    for key in set(keys):
        entry = bibtex([key])
        assert re.match(rf"@\w+\{{{key},\n", entry), key
        assert entry.count("{") == entry.count("}"), key
        assert {"title", "author", "year"} <= set(re.findall(r"(?m)^  (\w+) = ", entry)), key
    assert STRATEGIES.keys() <= ALL_STRATEGIES.ours().keys(), "names are those of today"


def test_potentials_say_what_they_rest_on(tmp_path: Path) -> None:
    assert references(STUDENT) == [*ALWAYS, "mace", "e3nn"]
    student = load(STUDENT)
    config = {
        "teacher": "chgnet:r2scan",
        "strategies": [{"name": "differential"}, {"name": "single_fidelity", "moves": "low_rank"}],
    }
    save(Sum((load("chgnet:gga"), student)), tmp_path / "a.jaxmlip", provenance={"config": config})
    found = references(tmp_path / "a.jaxmlip")
    assert found == [*ALWAYS, "chgnet", "mace", "e3nn", "delta_learning", "lora"]
    save(student, tmp_path / "b.jaxmlip", provenance={"converted from": {"file": "x.model", "class": "ScaleShiftMACE"}})
    assert "mace" in references(tmp_path / "b.jaxmlip")


def test_runs_say_what_they_rest_on(tmp_path: Path) -> None:
    """A trajectory, and a folder with its verdict and configuration."""
    run = tmp_path / "run"
    run.mkdir()
    times = {"time_ps": 0.001, "sample_every_fs": 1.0}
    simulate(load(STUDENT), ice_ih(molecules=16, seed=0), NVTVelocityRescaling(250.0), to=run / "a.h5", **times)
    assert references(run / "a.h5") == [*ALWAYS, "velocity_rescaling", *SIMULATED]
    (run / "config.json").write_text(json.dumps({"config": {"study": "clusters_to_bulk", "teacher": "chgnet:gga"}}))
    (run / "verdict.json").write_text(json.dumps({"observables": {"density": {"method": "bridge"}}}))
    result = CliRunner().invoke(app, ["cite", str(run)])
    assert result.exit_code == 0, result.output
    cited = re.findall(r"(?m)^@\w+\{(\w+),", result.stdout)
    assert len(cited) == len(set(cited))
    assert {"jaxmlip", "genice2", "chgnet", "mbar", "velocity_rescaling", "h5md"} <= set(cited)


def test_what_a_run_names_is_followed(tmp_path: Path) -> None:
    """Foundations, and both potentials of a verdict; also a foundation that its own training has replaced."""
    student, first, second = load(STUDENT), tmp_path / "first.jaxmlip", tmp_path / "second.jaxmlip"
    save(student, first, provenance={"config": {"teacher": "chgnet:gga", "foundation": str(first)}})
    save(student, second, provenance={"config": {"foundation": str(first)}})
    assert references(second) == [*ALWAYS, "mace", "e3nn", "chgnet"]
    against = 'ase:tblite.ase:TBLite?method="GFN2-xTB"'
    settings = {"potential": str(second), "against": against, "ensemble": "NVT(temperature_K=300)"}
    (tmp_path / "verdict").mkdir()
    file = tmp_path / "verdict" / "verdict.json"
    file.write_text(json.dumps({"settings": settings}))
    assert references(tmp_path / "verdict") == [*ALWAYS, "mace", "e3nn", "chgnet", "gfn2_xtb", "baoab"]
    file.write_text(json.dumps({"settings": settings | {"against": "ase:ase.calculators.emt:EMT"}}))
    with pytest.warns(UserWarning, match=r"works behind ase:ase\.calculators\.emt:EMT are not known here"):
        references(tmp_path / "verdict")


def test_what_cannot_be_cited_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        references(tmp_path / "gone")
    with pytest.raises(ValueError, match="is no run"):
        references(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="no readable JSON"):
        references(tmp_path)
    result = CliRunner().invoke(app, ["cite", str(tmp_path)])
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_citation_file_is_of_this_version() -> None:
    said = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text())
    assert said["version"] == version("jaxmlip")
    assert f"title = {{{said['title'].replace('JAX', '{JAX}')}}}" in bibtex(["jaxmlip"])
