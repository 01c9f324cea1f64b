"""Calls of the teacher for the same error of ⟨U⟩: hybrid Monte Carlo by a student against dynamics of the teacher.

Dynamics (Langevin, of the usual timestep) calls the teacher once a step, for energy and forces; hybrid Monte Carlo once
a proposal, for the energy alone. Both start from the same states in equilibrium. The calls that an error of 1 meV/atom
costs are error² × calls of the sampling, since errors fall with the square root of its length; those of equilibration
and warm-up, which are not repeated, are given beside. Times are of this machine, compilation included. Usage:

    uv run experiments/benchmarks/hybrid.py crystal [--replicas 8] [--moves 2000] [--time-ps 20]
    uv run experiments/benchmarks/hybrid.py ice [--molecules 16] [--epochs 40] [--teacher chgnet:r2scan] …

crystal: copper by Morse pairs at 600 K; students differ from it by a share of well depth and length.
ice: ice Ih at 250 K; the student (32 channels, two layers) is distilled from frames of the dynamics of the teacher.
"""

import argparse
import time
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.build import bulk
from jaxtyping import Array, Float

import jaxmlip as jm
from jaxmlip.observables.statistics import correlated_mean

TIMESTEP_FS = {"crystal": 2.0, "ice": 0.5}
TEMPERATURE_K = {"crystal": 600.0, "ice": 250.0}


@flax.struct.dataclass
class Morse(jm.Potential):
    """Morse pairs D ((1 − e^{−a(r − r₀)})² − 1), smoothly ended at 5.5 Å: params {"depth", "a", "length"}."""

    params: Any
    references: Any = flax.struct.field(default_factory=lambda: np.zeros(119))

    @property
    def cutoff(self) -> float:
        """Å."""
        return 5.5

    @property
    def species(self) -> tuple[int, ...]:
        """Copper."""
        return (29,)

    def atomic_energies(self, graph: jm.Graph) -> Float[Array, " atoms"]:
        """Half the pair energies, eV."""
        vectors, _ = jm.edge_vectors(graph)
        distance = jnp.sqrt((vectors**2).sum(-1))
        x, p = jnp.minimum(distance / self.cutoff, 1.0), self.params
        pair = p["depth"] * ((1.0 - jnp.exp(-p["a"] * (distance - p["length"]))) ** 2 - 1.0)
        return 0.5 * (pair * (1.0 - x**2) ** 3).sum(-1)


def morse(depth: float = 1.0, length: float = 1.0) -> Morse:
    """Copper (Girifalco and Weizer, Phys. Rev. 114, 687 (1959)), with a share of its depth and length."""
    values = {"depth": 0.3429 * depth, "a": 1.3588, "length": 2.866 * length}
    return Morse({name: np.float32(value) for name, value in values.items()})


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description="Teacher calls of hybrid Monte Carlo and of dynamics")
    parser.add_argument("case", choices=("crystal", "ice"))
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--moves", type=int, default=2000, help="proposals of each replica")
    parser.add_argument("--warm-up", type=int, default=200, help="proposals before them")
    parser.add_argument("--time-ps", type=float, default=20.0, help="of the teacher's dynamics, after equilibration")
    parser.add_argument("--equilibration-ps", type=float, default=2.0)
    parser.add_argument("--most-steps", type=int, default=100, help="of a proposal")
    parser.add_argument("--molecules", type=int, default=16, help="of ice")
    parser.add_argument("--teacher", default="chgnet:r2scan", help="of ice")
    parser.add_argument("--frames", type=int, default=80, help="of ice, that the student learns from")
    parser.add_argument("--epochs", type=int, default=40, help="of the student of ice")
    options = parser.parse_args()
    crystal = options.case == "crystal"
    teacher = morse() if crystal else jm.load(options.teacher)
    start = bulk("Cu", "fcc", a=3.66, cubic=True) * (2, 2, 2) if crystal else jm.ice_ih(molecules=options.molecules)
    timestep = TIMESTEP_FS[options.case]
    ensemble = jm.NVT(TEMPERATURE_K[options.case], friction_per_ps=5.0)

    first = jm.simulate(
        teacher,
        start,
        ensemble,
        time_ps=options.equilibration_ps,
        replicas=options.replicas,
        timestep_fs=timestep,
        sample_every_fs=20.0,
    )
    starts = [first[(replica + 1) * first.n_frames - 1] for replica in range(options.replicas)]
    began = time.perf_counter()
    direct = jm.simulate(
        teacher, starts, ensemble, time_ps=options.time_ps, timestep_fs=timestep, sample_every_fs=10.0, seed=1
    )
    wall = time.perf_counter() - began
    calls = options.replicas * round(1000 * options.time_ps / timestep)
    print("| | force error, meV/Å | acceptance | ⟨U⟩, meV/atom | calls | calls for 1 meV/atom | of dynamics | s |")
    print("|---|---|---|---|---|---|---|---|")
    known = per_atom(direct)
    cost = calls * float(known.error) ** 2
    print(f"| dynamics | | | {known} | {calls} | {cost:.0f} | 1 | {wall:.0f} |", flush=True)

    for name, student in students(options, teacher, first):
        error = jm.compare(jm.label(starts, teacher), jm.label(starts, student)).measured("force_rmse_meV_A")["value"]
        proposal = jm.Proposal(timestep_fs=timestep, warm_up=options.warm_up, most_steps=options.most_steps)
        sampled = jm.hybrid_monte_carlo(student, teacher, starts, ensemble, moves=options.moves, proposal=proposal)
        report(f"{name} | {error:.1f}", sampled, known, cost)


def report(name: str, sampled: jm.HybridRun, known: jm.Estimate, cost: float) -> None:
    """A row of the table, and what else there is to say."""
    found, s = per_atom(sampled.run), sampled
    calls = s.run.n_replicas * (s.teacher_calls - s.warm_up_calls)
    mine = calls * float(found.error) ** 2
    print(
        f"| {name} | {s.acceptance.mean():.2f} | {found} | {calls} | {mine:.0f} | {mine / cost:.3f} | "
        f"{s.run.wall_s:.0f} |"
    )
    print(
        f"    {s.proposal.steps} steps of {s.proposal.timestep_fs:.2f} fs; correlation {s.correlation:.1f} proposals; "
        f"{float(found.sigma_from(known)):+.1f} σ from dynamics; warm-up {s.warm_up_calls} calls of each replica; "
        f"teacher {s.teacher_s:.0f} s, student {s.student_s:.0f} s",
        flush=True,
    )


def per_atom(run: jm.Run) -> jm.Estimate:
    """⟨U⟩ in meV/atom."""
    return correlated_mean(1000.0 * run.potential_energy / len(run.numbers))


def students(options: argparse.Namespace, teacher: jm.Potential, run: jm.Run) -> list[tuple[str, jm.Potential]]:
    """Students, by what tells them apart."""
    if options.case == "crystal":
        shares = ((1.0, 1.0), (0.98, 1.0), (0.95, 1.002), (0.9, 1.005))
        return [(f"depth {depth:g}, length {length:g}", morse(depth, length)) for depth, length in shares]
    frames = [*run]
    rng = np.random.default_rng(0)
    chosen: list[Atoms] = [frames[index] for index in rng.choice(len(frames), options.frames, replace=False)]
    model = jm.Equivariant(channels=32, l_max=2, message_l=0, correlation=2, layers=2, cutoff=5.0, repulsion=True)
    settings = jm.TrainingSettings(
        epochs=options.epochs, validation_every=5, batch_size=4, learning_rate=0.01, stress_weight=0
    )
    return [(f"{len(chosen)} frames", jm.distil(model, teacher, chosen, settings=settings))]


if __name__ == "__main__":
    main()
