"""Observables by their names: what text asks for, and what it is told when it asks for something else."""

import dataclasses
import importlib.metadata
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from jaxmlip.observables.names import OBSERVABLES, observable_from_text, register_observable
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.structure import RDF
from jaxmlip.observables.thermodynamics import Density, PotentialEnergy, Pressure, Temperature


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("rdf:O-H", RDF("O", "H")),
        ("rdf:O-O:r_max=5:smearing=0.05", RDF("O", "O", r_max=5, smearing=0.05)),
        (" rdf : O-O : bins = 60 ", RDF("O", "O", bins=60)),
        ("potential_energy", PotentialEnergy()),
        ("density", Density()),
        ("temperature", Temperature()),
        ("pressure", Pressure()),
    ],
)
def test_what_text_asks_for(text: str, wanted: Observable) -> None:
    assert observable_from_text(text, temperature_K=250.0, pressure_GPa=0.0) == wanted


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rfd:O-O", r"no observable 'rfd' \(in 'rfd:O-O'\); there are potential_energy, .*rdf:A-B"),
        ("", "no observable ''"),
        ("rdf", "names no elements, and rdf needs 2: write rdf:A-B"),
        ("rdf:O", "names 1 elements, and rdf needs 2"),
        ("density:O", "names 1 elements, and density takes none: write density"),
        ("rdf:O-Q", "'rdf:O-Q' cannot be made: 'Q' is not the symbol of an element"),
        ("rdf:O-O:rmax=3", "'rmax=3' in 'rdf:O-O:rmax=3' is no option .*r_max, bins, smearing"),
        ("rdf:O-O:r_max", "'r_max' in .* is no option"),
        ("rdf:O-O:bins=3:bins=4", "'bins=4' in .*given once"),
        ("rdf:O-O:bins=[", "value of bins in 'rdf:O-O:bins=.' cannot be read"),
        ("rdf:O-O:bins=many", "cannot be made"),
        ("density:bins=3", "it has none"),
    ],
)
def test_what_there_is_not(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        observable_from_text(text)


def test_every_name_is_that_of_an_observable() -> None:
    """Of this package: each module registers what it is said to."""
    assert set(OBSERVABLES.ours()) == set(OBSERVABLES.names())
    for name, named in OBSERVABLES.ours().items():
        assert issubclass(named.make, Observable), name


OUTSIDE = '''
"""Somebody else's module."""

import dataclasses
from typing import Any

import jaxmlip as jm


@jm.register_observable("scaled_volume")
@dataclasses.dataclass(frozen=True)
class ScaledVolume(jm.Observable):
    """The volume at the temperature."""

    temperature_K: float
    factor: float = 1.0

    name = "scaled volume"
    unit = "Å3"

    def per_frame(self, frame: Any, potential: Any = None) -> Any:
        return self.factor * frame.volume
'''


def test_those_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point announces the name; temperatures are those of the ensemble unless the text says otherwise."""
    (tmp_path / "scaled_outside.py").write_text(textwrap.dedent(OUTSIDE))
    monkeypatch.syspath_prepend(tmp_path)
    point = importlib.metadata.EntryPoint("scaled_volume", "scaled_outside", OBSERVABLES.group)
    real = importlib.metadata.entry_points

    def entry_points(**wanted: Any) -> Any:
        mine = wanted.get("group") == OBSERVABLES.group and wanted.get("name", point.name) == point.name
        return importlib.metadata.EntryPoints([point]) if mine else real(**wanted)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    try:
        with pytest.raises(ValueError, match="'scaled_volume' needs temperature_K: write scaled_volume:temperature_K="):
            observable_from_text("scaled_volume")
        found: Any = observable_from_text("scaled_volume:factor=2", temperature_K=250)
        assert (found.temperature_K, found.factor) == (250, 2)
        other: Any = observable_from_text("scaled_volume:temperature_K=300", temperature_K=250)
        assert other.temperature_K == 300
        with pytest.raises(ValueError, match=r"there are .*scaled_volume"):
            observable_from_text("volume_scaled")
    finally:
        sys.modules.pop("scaled_outside", None)
        OBSERVABLES.pop("scaled_volume", None)
        OBSERVABLES._owners.pop("scaled_volume", None)


def test_names_are_given_once() -> None:
    with pytest.raises(ValueError, match=r"'rdf' is that of jaxmlip\.observables\.structure:RDF already"):

        @register_observable("rdf")
        @dataclasses.dataclass(frozen=True)
        class Other(RDF):
            """Another."""

    with pytest.raises(ValueError, match="is no dataclass"):
        register_observable("plain")(Observable)
