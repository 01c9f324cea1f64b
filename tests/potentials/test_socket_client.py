"""Path integrals by i-PI's own server, which asks the command line's client for the forces of eight beads."""

import os
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from morse import morse
from socket_server import asking, served
from typer.testing import CliRunner
from water_pairs import LOW

from jaxmlip.cli import app
from jaxmlip.potentials.ase import Calculator
from jaxmlip.potentials.files import save
from jaxmlip.potentials.socket_client import answer_socket
from jaxmlip.systems.ice import ice_ih

BEADS, STEPS = 8, 3

INPUT = """<simulation verbosity='low'>
  <output prefix='run'>
    <properties stride='1' filename='out'> [step, potential{{electronvolt}}, kinetic_cv{{electronvolt}}] </properties>
  </output>
  <total_steps>{steps}</total_steps>
  <prng><seed>1</seed></prng>
  <ffsocket name='jaxmlip' mode='unix' pbc='false'>
    <address>{address}</address> <timeout>60</timeout> <latency>1e-3</latency>
  </ffsocket>
  <system>
    <initialize nbeads='{beads}'>
      <file mode='xyz' units='angstrom'> start.xyz </file> <velocities mode='thermal' units='kelvin'> 250 </velocities>
    </initialize>
    <forces> <force forcefield='jaxmlip'> </force> </forces>
    <motion mode='dynamics'>
      <dynamics mode='nvt'>
        <timestep units='femtosecond'> 0.25 </timestep>
        <thermostat mode='pile_g'> <tau units='femtosecond'> 100 </tau> </thermostat>
      </dynamics>
    </motion>
    <ensemble> <temperature units='kelvin'> 250 </temperature> </ensemble>
  </system>
</simulation>
"""


def in_ipi_format(atoms: Atoms) -> str:
    """Extended XYZ as i-PI reads it."""
    cell = " ".join(f"{number:.10f}" for number in atoms.cell.cellpar())
    lines = [f"{atom.symbol} " + " ".join(f"{x:.10f}" for x in atom.position) for atom in atoms]
    header = f"# CELL(abcABC): {cell} positions{{angstrom}} cell{{angstrom}}"
    return "\n".join([str(len(atoms)), header, *lines]) + "\n"


@pytest.fixture
def server(tmp_path: Path):
    """i-PI under way, and the address at which it listens."""
    pytest.importorskip("ipi", reason="i-PI is not installed: pip install ipi")
    address = f"jaxmlip-{os.getpid()}"
    ice = ice_ih(molecules=16, seed=0)
    (tmp_path / "start.xyz").write_text(in_ipi_format(ice))
    (tmp_path / "input.xml").write_text(INPUT.format(address=address, steps=STEPS, beads=BEADS))
    executable = Path(sys.executable).with_name("i-pi")
    process = subprocess.Popen(
        [executable, "input.xml"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    listens = Path(f"/tmp/ipi_{address}")
    for _ in range(600):
        if listens.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    yield ice, address, process
    process.kill()
    process.wait()
    listens.unlink(missing_ok=True)


def test_path_integral_of_ice(server, tmp_path: Path) -> None:
    """All beads begin where the structure is: i-PI's first energy is the calculator's; later ones are finite."""
    ice, address, process = server
    assert process.poll() is None, process.stdout.read().decode()
    save(LOW, tmp_path / "low.jaxmlip")
    ase.io.write(tmp_path / "ice.extxyz", ice)
    options = ["--potential", str(tmp_path / "low.jaxmlip"), "--unix", address]
    result = CliRunner().invoke(app, ["ipi", str(tmp_path / "ice.extxyz"), *options])
    assert result.exit_code == 0, result.output
    assert process.wait(timeout=60) == 0
    assert f"Answered {BEADS * (STEPS + 1)} times." in result.output
    step, potential, kinetic = np.loadtxt(tmp_path / "run.out").T
    np.testing.assert_array_equal(step, range(STEPS + 1))
    ice.calc = Calculator(LOW)
    assert potential[0] == pytest.approx(ice.get_potential_energy(), abs=1e-3)
    assert np.isfinite(potential).all()
    assert np.isfinite(kinetic).all()
    assert np.ptp(potential) > 1e-3


def test_no_server(tmp_path: Path) -> None:
    save(LOW, tmp_path / "low.jaxmlip")
    ase.io.write(tmp_path / "ice.extxyz", ice_ih(molecules=16, seed=0))
    options = ["--potential", str(tmp_path / "low.jaxmlip"), "--unix", "nobody-listens"]
    result = CliRunner().invoke(app, ["ipi", str(tmp_path / "ice.extxyz"), *options])
    assert result.exit_code == 1
    assert "No server answers at the Unix socket /tmp/ipi_nobody-listens" in result.output


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda said: said.replace(b"STATUS", b"SUTATS"), r"protocol of i-PI does not have .*SUTATS"),
        (lambda said: said.replace(b"STATUS", b"\xff\xfe\xfd\xfc\xff\xff"), "protocol of i-PI does not have"),
        (lambda said: said[:12] + said[-24:], "does not have .READY"),
        (lambda said: said[:-60], "has ended in the middle of a message"),
        (lambda said: said.replace(np.int32(4).tobytes(), np.int32(2**30).tobytes()), "1073741824 atoms, and the"),
        (lambda said: said.replace(np.float64(3.0).tobytes(), np.float64("nan").tobytes()), "not finite"),
    ],
)
def test_servers_that_say_something_else(tmp_path: Path, change, sentence: str) -> None:
    atoms = Atoms("OH2O", 3.0 * units.Bohr * np.eye(4, 3), cell=np.full(3, 9.0), pbc=False)
    assert answer_socket(atoms, morse(), port=served(asking(atoms))) == 1
    with pytest.raises(ConnectionError, match=sentence):
        answer_socket(atoms, morse(), port=served(change(asking(atoms))))
