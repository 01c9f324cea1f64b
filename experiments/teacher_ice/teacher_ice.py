"""Ice Ih as a teacher has it: density, lattice constants and radial distribution functions of its own simulation.

A proton-disordered crystal is relaxed, its cell too, and simulated at constant temperature and pressure; the three
lengths of the cell fluctuate. Classical averages over positions do not depend on masses: hydrogen is deuterium here,
which allows steps of 1 fs, and densities are those of H2O nevertheless. Run again to go on where it was, or with a
longer --time-ps. Usage:

    uv run python experiments/teacher_ice/teacher_ice.py [--time-ps 20] [--molecules 128] [--replicas 1] [--seed 0]
        [--potential chgnet:r2scan] [--temperature-K 250] [--pressure-GPa 0] [--equilibration-ps 4] [--report-only]
        [--out runs/teacher_ice]
"""

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import ase.io
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np

import jaxmlip as jm
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.statistics import Estimate
from jaxmlip.potentials.files import load_potential
from jaxmlip.units import G_PER_CM3
from jaxmlip.validation.averages import average

mpl.use("Agg")
import matplotlib.pyplot as plt

WATER_AMU = 18.015
DEUTERIUM_AMU = 2.014
EXPERIMENT = {"density": 0.92000, "a": 4.51842, "c": 7.35556}
"""At 250 K and 1 atm: IAPWS R10-06, g/cm³; Röttger et al., Acta Cryst. B 50, 644 (1994), Å."""

PAIRS = (("O", "O"), ("O", "H"), ("H", "H"))


@dataclasses.dataclass(frozen=True)
class Crystal(Observable):
    """Density in g/cm³ of H2O, and lattice constants a (along x), b/√3 (along y, a too in a hexagonal crystal), c in Å.

    Attributes:
        molecules: in the box.
        cells: unit cells a × √3 a × c along each side of the box.
    """

    molecules: int
    cells: tuple[int, int, int]

    @property
    def name(self) -> str:
        """Name."""
        return "crystal"

    @property
    def unit(self) -> str:
        """Units."""
        return "g/cm³, Å, Å, Å"

    def per_frame(self, frame: jm.FrameState, potential: jm.Potential | None = None) -> Any:
        """[4]."""
        volume = jnp.abs(jnp.linalg.det(frame.cell))
        lengths = jnp.linalg.norm(frame.cell, axis=1) / jnp.array(self.cells)
        density = self.molecules * WATER_AMU / (G_PER_CM3 * volume)
        return jnp.array([density, lengths[0], lengths[1] / math.sqrt(3.0), lengths[2]])


def start(arguments: argparse.Namespace, potential: jm.Potential, folder: Path) -> Any:
    """The relaxed crystal, of deuterium; kept in a file, so that a run that goes on starts from the very same."""
    path = folder / "start.extxyz"
    if not path.exists():
        ice = jm.ice_ih(molecules=arguments.molecules, seed=arguments.seed)
        relaxed = jm.relax(potential, ice, 0.02, stress_GPa=0.02, pressure_GPa=arguments.pressure_GPa)
        ase.io.write(path.with_suffix(".partial"), relaxed.atoms, format="extxyz")
        path.with_suffix(".partial").replace(path)
    ice: Any = ase.io.read(path)
    ice.set_masses(np.where(ice.numbers == 1, DEUTERIUM_AMU, ice.get_masses()))
    return ice


def unit_cells(ice: Any) -> tuple[int, int, int]:
    """Unit cells a × √3 a × c along the sides of a box, from its lengths."""
    a, c = EXPERIMENT["a"], EXPERIMENT["c"]
    x, y, z = (
        round(float(length / unit)) for length, unit in zip(ice.cell.lengths(), (a, math.sqrt(3) * a, c), strict=True)
    )
    return x, y, z


def plot(folder: Path, run: jm.Run, crystal: Crystal, rdfs: dict[str, Estimate], discarded_ps: float) -> None:
    """Density of the run, and the radial distribution functions with a band of two standard errors."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    time = run.time_fs / 1000
    for series in jm.observe(run, crystal)[:, :, 0]:
        left.plot(time, series, lw=0.6)
    left.axvspan(0, discarded_ps, color="0.9", label="left out")
    left.axhline(EXPERIMENT["density"], color="k", ls="--", lw=1, label="experiment, 250 K")
    left.set(xlabel="time / ps", ylabel="density of H$_2$O / g cm$^{-3}$", xlim=(0, time[-1]))
    left.legend(fontsize=8)
    for name, estimate in rdfs.items():
        r, g, error = np.asarray(estimate.axis), estimate.value, 2 * estimate.error
        right.plot(r, g, lw=1, label=f"{name[2]}–{name[3]}")
        right.fill_between(r, g - error, g + error, alpha=0.3)
    right.set(xlabel="r / Å", ylabel="g(r)", xlim=(0.8, 6), ylim=(0, 8))
    right.legend(title="± 2 standard errors", fontsize=8, title_fontsize=8)
    figure.savefig(folder / "teacher_ice.png", dpi=130)


def report(arguments: argparse.Namespace, folder: Path) -> None:
    """Write and print the table of one run, and its picture."""
    run = jm.load_run(folder / "run.h5")
    # What was written of a run that was killed, or is still going on, can be looked at as if it were all.
    run = dataclasses.replace(
        run, outcomes=tuple(jm.Outcome.COMPLETED if o is jm.Outcome.UNFINISHED else o for o in run.outcomes)
    )
    crystal = Crystal(arguments.molecules, unit_cells(ase.io.read(folder / "start.extxyz")))
    discarded = arguments.equilibration_ps
    cell = average(run, crystal, equilibration=discarded)
    rdfs = {rdf.name: average(run, rdf, equilibration=discarded) for rdf in (jm.RDF(*pair) for pair in PAIRS)}
    rows = ["| | simulation | experiment | σ between them |", "|---|---|---|---|"]
    names = {"density": "density, g/cm³", "a": "a, Å", "b": "b/√3, Å", "c": "c, Å"}
    for place, (key, name) in enumerate(names.items()):
        value, error = float(cell.value[place]), float(cell.error[place])
        known = EXPERIMENT["a" if key == "b" else key]
        rows.append(f"| {name} | {value:.4f} ± {error:.4f} | {known:.4f} | {(value - known) / error:+.0f} |")
    for name, estimate in rdfs.items():
        r = np.asarray(estimate.axis)
        peak = int(np.argmax(np.where((r > 1.2) | (name != "g_OH"), estimate.value, 0.0)))
        rows.append(
            f"| {name[2]}–{name[3]}, highest peak{' beyond the bond' if name == 'g_OH' else ''} | "
            f"g({r[peak]:.2f} Å) = {estimate.value[peak]:.2f} ± {estimate.error[peak]:.2f} | – | – |"
        )
    table = "\n".join(rows)
    print(table)
    last = run.time_fs[-1] / 1000
    temperature = run.temperature[:, run.time_fs > 1000 * discarded].mean()
    print(
        f"{run.n_replicas} × {last:g} ps, of which {last - discarded:g} ps are used: {cell.n_samples} frames worth "
        f"{cell.effective_samples:.0f} independent ones; T = {temperature:.1f} K; {cell.status.value}"
    )
    (folder / "table.md").write_text(table + "\n")
    plot(folder, run, crystal, rdfs, discarded)


def main() -> None:
    """Simulate, or go on, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--potential", default="chgnet:r2scan")
    parser.add_argument("--molecules", type=int, default=128)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--time-ps", type=float, default=20.0)
    parser.add_argument("--temperature-K", type=float, default=250.0)
    parser.add_argument("--pressure-GPa", type=float, default=0.0)
    parser.add_argument("--equilibration-ps", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report-only", action="store_true", help="of what there is, also of a run still going on")
    parser.add_argument("--out", type=Path, default=Path("runs/teacher_ice"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.report_only:
        potential = load_potential(arguments.potential)
        ice = start(arguments, potential, arguments.out)
        ensemble = jm.NPT(arguments.temperature_K, arguments.pressure_GPa, "orthorhombic")
        settings = {name: str(value) for name, value in vars(arguments).items()}
        (arguments.out / "settings.json").write_text(json.dumps(settings, indent=1))
        jm.simulate(
            potential,
            ice,
            ensemble,
            to=arguments.out / "run.h5",
            time_ps=arguments.time_ps,
            timestep_fs=1.0,
            replicas=arguments.replicas,
            seed=arguments.seed,
        )
    report(arguments, arguments.out)


if __name__ == "__main__":
    main()
