"""Kinds and names of other packages: registered, written, read back, and found by entry points alone."""

import importlib.metadata
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from morse import Morse, morse
from typer.testing import CliRunner

from jaxmlip.cli import app
from jaxmlip.potentials import kinds
from jaxmlip.potentials.files import PotentialFileError, load, read_header, save
from jaxmlip.potentials.kinds import KINDS, NAMES, register_names, register_potential

SPRINGS = '''
    """Every atom on a spring to the origin."""

    import flax.struct
    import jax.numpy as jnp
    import numpy as np

    import jaxmlip as jm


    @jm.register_potential("springs")
    @flax.struct.dataclass
    class Springs(jm.Potential):
        params: dict
        references: np.ndarray
        known: tuple[int, ...] = flax.struct.field(pytree_node=False, default=(8, 1))

        cutoff = 1.0

        @property
        def species(self):
            return self.known

        def atomic_energies(self, graph):
            away = (jnp.asarray(graph.positions) ** 2).sum(-1)
            return jnp.where(graph.atom_mask, 0.5 * self.params["k"] * away, 0.0)


    @jm.register_names("springs", known=("stiff",))
    def named(rest):
        return Springs({"k": np.float32(1 / 3)}, np.arange(119) / 7)
'''
"""A package as someone else would write it."""


@pytest.fixture
def registries(monkeypatch):
    """Changes to the registries that end with the test."""
    monkeypatch.setattr(kinds, "KINDS", KINDS.copy())
    monkeypatch.setattr(kinds, "NAMES", NAMES.copy())


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the package, and the metadata by which an installed one announces itself."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "springs_package.py").write_text(textwrap.dedent(SPRINGS))
    announced = folder / "springs_package-1.0.dist-info"
    announced.mkdir()
    (announced / "METADATA").write_text("Metadata-Version: 2.1\nName: springs-package\nVersion: 1.0\n")
    (announced / "entry_points.txt").write_text("[jaxmlip.potentials]\nsprings = springs_package\n")
    return folder


def run_python(program: str, site: Path | None) -> str:
    path = f"import sys; sys.path.insert(0, {str(site)!r})\n" if site else ""
    done = subprocess.run([sys.executable, "-c", path + program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_package_that_is_installed_needs_no_import(site, tmp_path, monkeypatch, registries):
    """Saved by one process; read by name and from the file by another that never imports it; refused without it."""
    path = tmp_path / "a.jaxmlip"
    written = f"import jaxmlip as jm, springs_package as s; jm.save(s.named('stiff'), {str(path)!r})"
    run_python(written, site)
    with pytest.raises(
        PotentialFileError, match=r"of the kind 'springs'.*; import springs_package, which registers it"
    ):
        load(path)
    with pytest.raises(ValueError, match="no potential 'springs:stiff'; the names are chgnet:gga, "):
        load("springs:stiff")
    monkeypatch.syspath_prepend(str(site))
    again, by_name = load(path), load("springs:stiff", dtype=np.float32)
    assert jax.tree.structure(again) == jax.tree.structure(by_name)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(by_name), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert again.species == (8, 1)
    assert read_header(path)["potential"]["class"] == "springs_package:Springs"
    from ase.build import molecule

    water = molecule("H2O")
    water.write(tmp_path / "water.xyz")
    for name in (path, "springs:stiff"):
        arguments = ["label", tmp_path / "water.xyz", "--potential", name, "--out", tmp_path / "out.xyz"]
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
    with pytest.raises(ValueError, match=r"no potential 'spring'; the names are .*springs:stiff, and paths"):
        load("spring")


def test_functions_of_ones_own(registries, monkeypatch, tmp_path):
    encode = lambda potential: ({"of": list(potential.known)}, {"numbers": potential.params})  # noqa: E731
    decode = lambda cls, static, leaves, references: cls(leaves["numbers"], references, tuple(static["of"]))  # noqa: E731
    assert register_potential("morse", encode=encode, decode=decode)(Morse) is Morse
    monkeypatch.setattr("jaxmlip.potentials.files.KINDS", kinds.KINDS)
    save(morse() + morse(depth=0.1), tmp_path / "a.jaxmlip")
    again = load(tmp_path / "a.jaxmlip")
    assert jax.tree.structure(again) == jax.tree.structure(morse() + morse())
    assert read_header(tmp_path / "a.jaxmlip")["potential"]["terms"][0]["static"] == {"of": [1, 8, 29, 47]}
    register_potential("morse", encode=encode, decode=decode)(Morse)  # as where a module is reloaded


def test_mistakes(registries):
    with pytest.raises(
        ValueError, match=r"'chgnet' is that of jaxmlip.potentials.chgnet:CHGNet already; choose another"
    ):
        register_potential("chgnet")(Morse)
    with pytest.raises(ValueError, match="'sum' is that of sums of potentials"):
        register_potential("sum")(Morse)
    with pytest.raises(ValueError, match="needs both encode and decode"):
        register_potential("morse", encode=lambda potential: ({}, {}))
    with pytest.raises(ValueError, match="prefix 'chgnet' is that of jaxmlip"):
        register_names("chgnet")(lambda rest: morse())


def test_a_broken_package_is_named(registries, monkeypatch):
    point = importlib.metadata.EntryPoint("torn", "torn_package.potentials", kinds.ENTRY_POINTS)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [point])
    with pytest.raises(ImportError, match=r"'torn' is announced by .* torn_package\.potentials, which cannot be imp"):
        load("torn:any")
