"""How often intervals hold: coverage of nominal 68 and 95 % intervals over independent repeats.

    uv run python experiments/benchmarks/coverage.py series [--repeats 600]
    uv run python experiments/benchmarks/coverage.py nvt|fast|npt [--replicas 3200]

`series` makes stationary series whose mean is 0: of one correlation time τ (AR(1)), of two (a fast part and one of τ,
in shares of 0.5, 0.1 and 0.03 of the variance), and of a vibration and τ. The others simulate fcc crystals of a Morse
potential from the cold lattice, thousands of replicas of eight atoms in one program, take them in rows of 2, 4 or 8,
and hold the average of each row against the mean over all; once more without the time constants of the ensemble, as
for runs that know of none. Rows of the table are numbers of replicas and lengths; the columns say how often an average
was OK, and how often it had an error, with how many of the 68 and 95 % intervals held, and what else was said.
"""

import argparse
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from ase.build import bulk
from scipy.signal import lfilter
from scipy.stats import t

from jaxmlip.observables.estimate import Estimate
from jaxmlip.observables.statistics import correlated_mean
from jaxmlip.observables.thermodynamics import Density, PotentialEnergy, Temperature
from jaxmlip.potentials.potential import N_SPECIES, Potential
from jaxmlip.simulation.barostats import NPT
from jaxmlip.simulation.ensembles import NVT, Ensemble
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Run, load_run
from jaxmlip.systems.graph import Graph, edge_vectors
from jaxmlip.types import Leaf, PerAtom
from jaxmlip.validation.averages import average, observe

TAU = 20.0
"""Frames in a correlation time."""

LENGTHS = (2, 5, 10, 20, 50, 100, 200, 500)
"""Correlation times in a replica."""


def exponential(replicas: int, frames: int, tau: float, rng: np.random.Generator) -> np.ndarray:
    """[replicas, frames] of variance 1 and correlation exp(−t/τ)."""
    decay = np.exp(-1.0 / tau)
    noise = rng.normal(size=(replicas, frames)) * np.sqrt(1 - decay**2)
    noise[:, 0] /= np.sqrt(1 - decay**2)
    return np.asarray(lfilter([1.0], [1.0, -decay], noise, axis=1))


def two_scales(share: float, ratio: float = 50.0) -> Callable[..., np.ndarray]:
    """A slow part with a share of the variance, and one that is so much faster."""

    def series(replicas: int, frames: int, tau: float, rng: np.random.Generator) -> np.ndarray:
        slow, fast = (exponential(replicas, frames, time, rng) for time in (tau, tau / ratio))
        return np.sqrt(share) * slow + np.sqrt(1.0 - share) * fast

    return series


def vibrating(replicas: int, frames: int, tau: float, rng: np.random.Generator) -> np.ndarray:
    """A damped vibration, of period τ/3 and damping time τ, with 0.9 of the variance, and a slow part."""
    damping, angle = np.exp(-1.0 / tau), 6.0 * np.pi / tau
    noise = rng.normal(size=(replicas, frames + int(10 * tau)))
    vibration = np.asarray(lfilter([1.0], [1.0, -2.0 * damping * np.cos(angle), damping**2], noise, axis=1))
    vibration = vibration[:, int(10 * tau) :]
    variance = (1 + damping**2) / ((1 - damping**2) * (1 - 2 * damping**2 * np.cos(2 * angle) + damping**4))
    return np.sqrt(0.9 / variance) * vibration + np.sqrt(0.1) * exponential(replicas, frames, tau, rng)


SERIES = {
    "one time": exponential,
    "two times, slow half": two_scales(0.5),
    "two times, slow tenth": two_scales(0.1),
    "two times, slow 3 %": two_scales(0.03),
    "vibration and slow tenth": vibrating,
}


@flax.struct.dataclass
class Morse(Potential):
    """½ Σ_j D ((1 − e^{−a(r − r₀)})² − 1), switched off between 3.4 and 4.2 Å; two shells of a crystal like copper."""

    params: Leaf
    references: Leaf = flax.struct.field(default_factory=lambda: np.zeros(N_SPECIES))

    @property
    def cutoff(self) -> float:
        """Å."""
        return 4.2

    @property
    def species(self) -> tuple[int, ...]:
        """Copper."""
        return (29,)

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Half the pair energies, eV."""
        vectors, mask = edge_vectors(graph)
        distances = jnp.sqrt(jnp.where(mask, (vectors**2).sum(-1), 25.0))
        pairs = self.params["depth"] * ((1.0 - jnp.exp(-1.36 * (distances - 2.6))) ** 2 - 1.0)
        u = jnp.clip((distances - 3.4) / 0.8, 0.0, 1.0)
        return 0.5 * (pairs * (1.0 - u**3 * (10.0 - 15.0 * u + 6.0 * u**2))).sum(-1)


def crystal(path: Path, ensemble: Ensemble, time_ps: float, replicas: int) -> Run:
    """Eight atoms from the lattice at rest; simulated once, and kept."""
    if path.exists():
        return load_run(path)
    run = simulate(
        Morse({"depth": np.float32(0.3429)}),
        bulk("Cu", "fcc", a=3.65).repeat(2),
        ensemble,
        time_ps=time_ps,
        timestep_fs=5.0,
        sample_every_fs=20.0,
        replicas=replicas,
        seed=1,
    )
    run.save(path)
    return run


def shortened(run: Run, time_ps: float) -> Run:
    """Its first frames."""
    frames = int(np.searchsorted(run.time_fs, 1000.0 * time_ps, side="right"))
    series = ("positions", "potential_energy", "temperature", "conserved", "pressure_GPa")
    changes: dict[str, Any] = {name: value[:, :frames] for name in series if (value := getattr(run, name)) is not None}
    cells = run.cells[:, :frames] if run.cells.ndim == 4 else run.cells
    lengths, observed = np.minimum(run.lengths, frames), {name: kept[:, :frames] for name, kept in run.observed.items()}
    changes |= {"cells": cells, "lengths": lengths, "observed": observed, "time_fs": run.time_fs[:frames]}
    return dataclasses.replace(run, **changes)


def row(name: str, estimates: list[Estimate], truth: float) -> str:
    """One row of the table."""
    kinds: dict[str, list[Estimate]] = defaultdict(list)
    for estimate in estimates:
        kinds[estimate.status.name].append(estimate)
    shown = [estimate for estimate in estimates if np.isfinite(estimate.error)]
    cells = [f"{name:44s}", f"{len(estimates):4d}", f"{_coverage(kinds.pop('OK', []), truth, len(estimates)):26s}"]
    cells += [f"{_coverage(shown, truth, len(estimates)):26s}"]
    cells += [", ".join(f"{kind} {100 * len(kinds[kind]) / len(estimates):.0f} %" for kind in sorted(kinds))]
    return f"| {' | '.join(cells)} |"


def _coverage(estimates: list[Estimate], truth: float, of: int) -> str:
    """How many there are, and coverages in %."""
    if not estimates:
        return "–"
    value, error, dof = (np.array([float(getattr(e, name)) for e in estimates]) for name in ("value", "error", "dof"))
    deviation = np.abs(value - truth) / error
    held = [100 * np.mean(deviation < t.ppf(0.5 + 0.5 * level, dof)) for level in (0.6827, 0.95)]
    return f"{100 * len(estimates) / of:.1f} %: {held[0]:.0f}, {held[1]:.1f}"


def series_table(repeats: int) -> Iterator[str]:
    """Rows for series of known mean."""
    for number, (name, make) in enumerate(SERIES.items()):
        for replicas in (1, 2, 4, 8):
            for length in LENGTHS:
                rng = np.random.default_rng([number, replicas, length])
                made = (make(replicas, int(length * TAU), TAU, rng) for _ in range(repeats))
                yield row(f"{name}, {replicas} × {length} τ", [correlated_mean(one) for one in made], 0.0)


CRYSTALS = {
    "nvt": (NVT(300.0), (0.8, 2.0)),
    "fast": (NVT(300.0, friction_per_ps=20.0), (0.5, 1.0, 2.0, 4.0)),
    "npt": (
        NPT(300.0, pressure_time_ps=0.1, compressibility_per_GPa=0.007, friction_per_ps=20.0),
        (1.0, 2.0, 4.0, 10.0),
    ),
}
"""Ensembles, and lengths of the runs in ps."""


def crystal_table(folder: Path, name: str, replicas: int, repeats: int) -> Iterator[str]:
    """Rows for crystals that start cold; the truth is the mean over all replicas, of the later half."""
    ensemble, times = CRYSTALS[name]
    run = crystal(folder / f"{name}.h5", ensemble, times[-1], replicas)
    observables = (Density(),) if ensemble.moves_cell else (Temperature(), PotentialEnergy())
    # Evaluated once, not for each part.
    run = dataclasses.replace(run, observed={each.name: observe(run, each) for each in observables})
    for constants, observable in itertools.product((run.time_constants_ps, {}), observables):
        truth = float(run.observed[observable.name][:, run.n_frames // 2 :].mean())
        title = f"{name}{'' if constants else ' without constants'}, {observable.name}"
        for time_ps, group in itertools.product(times, (2, 4, 8)):
            short = dataclasses.replace(shortened(run, time_ps), time_constants_ps=constants)
            starts = range(0, run.n_replicas - group + 1, group)[:repeats]
            parts = (short.part(slice(start, start + group)) for start in starts)
            yield row(f"{title}, {group} × {time_ps:g} ps", [average(part, observable) for part in parts], truth)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("series", *CRYSTALS))
    parser.add_argument("--repeats", type=int, default=600, help="of each row, at most")
    parser.add_argument("--replicas", type=int, default=3200, help="of a crystal")
    parser.add_argument("--runs", type=Path, default=Path("runs/coverage"), help="folder where crystals' runs are kept")
    arguments = parser.parse_args()
    print("| what | repeats | OK: 68 %, 95 % | with an error: 68 %, 95 % | other statuses |\n|---|---|---|---|---|")
    if arguments.what == "series":
        rows = series_table(arguments.repeats)
    else:
        arguments.runs.mkdir(parents=True, exist_ok=True)
        rows = crystal_table(arguments.runs, arguments.what, arguments.replicas, arguments.repeats)
    for line in rows:
        print(line, flush=True)


if __name__ == "__main__":
    main()
