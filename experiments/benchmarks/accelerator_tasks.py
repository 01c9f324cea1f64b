"""Tasks of the accelerator's benchmark beside force calls: molecular dynamics, training, and observable gradients."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from on_device import Clock, Rates, Row, at_once, best_s, said, times_s

from jaxmlip.observables.structure import RDF
from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.files import load
from jaxmlip.potentials.potential import Potential, evaluate
from jaxmlip.simulation.barostats import NPT
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.options import Options
from jaxmlip.simulation.session import make_session
from jaxmlip.simulation.trajectory import Outcome, Run
from jaxmlip.systems.batches import make_batches, make_samples
from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.graph import graph_from_atoms
from jaxmlip.systems.ice import ice_ih
from jaxmlip.training.problem import TrainingProblem, TrainingSettings
from jaxmlip.training.stacking import stacked_controls, stacked_potentials, stacked_states
from jaxmlip.training.step import update
from jaxmlip.validation.averages import frame_states
from jaxmlip.validation.frame_gradients import in_batches
from jaxmlip.validation.gradients import mean_of_frames

STUDENT = Path(__file__).parents[1] / "differentiable_validation" / "students" / "energies_and_forces.jaxmlip"
"""Trained on ice, 16 channels."""

NEIGHBORS = 48.0
"""Of an atom of ice Ih within 5 Å, about."""

LATTICE = {96: (96, 1, 1, 1), 384: (384, 1, 1, 1), 1536: (384, 2, 2, 1), 12288: (384, 4, 4, 2), 49152: (384, 8, 4, 4)}
"""Atoms of a box, and how often it is repeated; molecules are displaced at random afterwards."""


class Sizes(NamedTuple):
    """How large the tasks are.

    Attributes:
        channels: of potentials that are timed.
        training_channels: of those that are trained.
        atoms: of force calls.
        replicas: of 96 atoms.
        models: potentials at once.
        frames: of the reweighted average.
        profiled: atoms of the call that is profiled.
        order: l_max and correlation of the potentials, 3 as in the other benchmarks; 2 compiles in half of the time.
    """

    channels: int
    training_channels: int
    atoms: tuple[int, ...]
    replicas: tuple[int, ...]
    models: tuple[int, ...]
    frames: int
    profiled: int
    order: int


FULL = Sizes(128, 64, tuple(LATTICE), (1, 8, 64, 512, 1024), (1, 4, 16), 128, 12288, 3)
SMALL = Sizes(16, 8, (96,), (1, 8), (2,), 16, 96, 2)


class Bench(NamedTuple):
    """What all sections need."""

    sizes: Sizes
    clock: Clock
    workers: int
    rates: Rates | None
    seconds: float


def box(atoms: int) -> Atoms:
    """Ice Ih with thermal displacements."""
    unit, *repeats = LATTICE[atoms]
    made = ice_ih(unit // 3, seed=0) * tuple(repeats)
    made.rattle(0.05, seed=0)
    return made


def model(channels: int, L: int, order: int = 3, seed: int = 0) -> EquivariantPotential:
    """The potential of the other benchmarks (of order 3), with random weights."""
    architecture = Equivariant(channels=channels, l_max=order, correlation=order, layers=2, message_l=L, cutoff=5.0)
    return architecture.build((1, 8), average_neighbors=NEIGHBORS, scale=0.01, seed=seed)


def timed(call: Callable[[], Any], seconds: float, atoms: int) -> Row:
    """Median and shortest time, ms, and that of an atom."""
    times = times_s(call, seconds)
    ms = 1e3 * float(np.median(times))
    return {"ms": ms, "fastest ms": 1e3 * min(times), "µs per atom": 1e3 * ms / atoms}


def temporary_MiB(compiled: Any) -> float:
    """Memory that a program needs beside arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


def started(potentials: Sequence[Potential], ensemble: Any, replicas: int, atoms: Atoms) -> Any:
    """A simulation that is compiled and at its start."""
    steps = 10**8
    options = Options(steps=steps, replicas=replicas, sample_every_fs=0.5 * steps, on_failure="mark", watch_bonds=False)
    driver = make_session(list(potentials), atoms, ensemble, options).driver
    driver.prepare()
    return driver


def moved(driver: Any, seconds: float, atoms: int) -> Row:
    """Steps per second of a simulation, in blocks of which the last two are counted."""
    taken, times, steps = 0, [], 4
    for block in range(4):
        taken += steps
        s = driver.advance(taken)
        times.append(s / steps)
        if block == 1:  # the first has made lists and warmed up
            steps = int(np.clip(seconds / times[-1], 4, 2000))
    replicas, failed = len(driver.starts.sizes), int((np.asarray(driver.replicas.failure) > 0).sum())
    s = min(times[2:])
    row: Row = {"ms per step": 1e3 * s, "replica-steps/s": replicas / s, "ns/day": replicas * 0.5e-6 * 86400 / s}
    row |= {"µs per atom": 1e6 * s / (replicas * atoms), "steps": taken}
    return row | ({"error": f"{failed} replicas have failed"} if failed else {})


def replicas(bench: Bench, rows: list[Row]) -> None:
    """Molecular dynamics of replicas of 96 atoms."""
    ensembles = {"NVT": NVT(10.0), "NPT flexible": NPT(10.0, 0.0, cell="flexible")}
    atoms, potential = box(96), model(bench.sizes.channels, 0, bench.sizes.order)
    tasks = {
        f"{name}; {number}": partial(started, [potential], ensemble, number, atoms)
        for number in bench.sizes.replicas
        for name, ensemble in ensembles.items()
    }
    for key, driver, error in at_once(bench.clock, tasks, bench.workers):
        name, number = key.split("; ")
        row: Row = {"ensemble": name, "replicas": int(number)}
        rows.append(row | ({"error": said(error)} if error is not None else moved(driver, bench.seconds, len(atoms))))


def models(bench: Bench, rows: list[Row]) -> None:
    """Several potentials at once: simulated, and trained on labels of a student of ice."""
    teacher = load(STUDENT)
    atoms, sizes = box(96), (bench.sizes.training_channels, 0, bench.sizes.order)
    stacks = {number: [model(*sizes, seed) for seed in range(number)] for number in bench.sizes.models}

    def simulated(potentials: Sequence[Potential]) -> Callable[[], Row]:
        driver = started(potentials, NVT(10.0), 1, atoms)
        return partial(moved, driver, bench.seconds, len(atoms))

    tasks = {
        f"train; {number}": partial(training, each, teacher, atoms, bench.seconds) for number, each in stacks.items()
    }
    tasks |= {f"simulate; {number}": partial(simulated, each) for number, each in stacks.items()}
    for key, measure, error in at_once(bench.clock, tasks, bench.workers):
        what, number = key.split("; ")
        row: Row = {"what": what, "models": int(number)}
        rows.append(row | ({"error": said(error)} if error is not None else measure()))


def training(
    potentials: list[EquivariantPotential], teacher: Potential, atoms: Atoms, seconds: float
) -> Callable[[], Row]:
    """A compiled training step of a stack of models on five boxes, and how to time it."""
    draw, frames = np.random.default_rng(0), []
    labels = jax.jit(evaluate)
    for _ in range(5):
        there = atoms.copy()
        there.positions += 0.05 * draw.standard_normal(there.positions.shape)
        found = labels(teacher, graph_from_atoms(there, teacher.cutoff, slots=80))
        frames.append(Frame(there, float(found.energy[0]), np.asarray(found.forces, np.float64)))
    samples = make_samples(frames, potentials[0].cutoff, 0.0, np.zeros(119))
    (batch,) = make_batches(samples, len(samples))
    settings = TrainingSettings()
    problems = [TrainingProblem(each, samples, samples, settings.terms(), settings.terms()) for each in potentials]
    number = len(problems)
    controls = stacked_controls(problems, [settings] * number).replace(learning_rate=np.full(number, 1e-3))
    batches = jax.tree.map(lambda leaf: np.stack([leaf] * number), batch)
    lender, batches, controls = jax.device_put((stacked_potentials(problems), batches, controls))
    state = [jax.device_put(stacked_states(problems))]
    step = update.lower(lender, state[0], batches, controls).compile()

    def measure() -> Row:
        losses = []

        def call() -> Any:
            state[0], report = step(lender, state[0], batches, controls)
            losses.append(report.loss)
            return report.loss

        row = timed(call, seconds, 5 * len(atoms) * number)
        first, last = np.asarray(losses[0]), np.asarray(losses[-1])
        row |= {"temporary MiB": temporary_MiB(step)}
        row |= {"first loss": float(first[0]), "last loss": float(last[0]), "steps": len(losses)}
        return row if (last < first).all() else row | {"error": "the loss has not become smaller"}

    return measure


def kernel(bench: Bench, rows: list[Row]) -> None:
    """Force calls and a training step with the kernel of messages, beside the form for accelerators, on a GPU.

    What fails is a note: nobody gets the kernel without asking for it, and the form has sections of its own.
    """
    if jax.default_backend() != "gpu":
        rows.append({"note": "the kernel of messages is for GPUs"})
        return
    forms = ("accelerator", "accelerator_kernel")
    teacher, order = load(STUDENT), bench.sizes.order
    graphs = {n: graph_from_atoms(box(n), model(1, 0, order).cutoff) for n in bench.sizes.atoms if n <= 12288}

    def called(form: Any, L: int, atoms: int) -> Callable[[], Row]:
        potential, graph = jax.device_put((model(bench.sizes.channels, L, order).replace(form=form), graphs[atoms]))
        call = jax.jit(evaluate).lower(potential, graph).compile()

        def measure() -> Row:
            row: Row = {"forces": np.asarray(call(potential, graph).forces, np.float64)}
            row |= timed(lambda: call(potential, graph), bench.seconds, atoms)
            return row | {"temporary MiB": temporary_MiB(call)}

        return measure

    def trained(form: Any, L: int) -> Callable[[], Row]:
        potential = model(bench.sizes.training_channels, L, order).replace(form=form)
        return training([potential], teacher, box(96), bench.seconds)

    tasks: dict[str, Callable[[], Any]] = {}
    for form in forms:  # the kernel's last: a device that has failed once may fail ever after
        tasks |= {f"{form}; L = {L}; {n} atoms": partial(called, form, L, n) for n in graphs for L in (0, 1)}
        tasks |= {f"{form}; L = {L}; training step": partial(trained, form, L) for L in (0, 1)}
    plain: dict[str, Any] = {}
    for key, measure, error in at_once(bench.clock, tasks, bench.workers):
        form, L, what = key.split("; ")
        row: Row = {"potential": L, "what": what, "form": form}
        rows.append(row)
        try:
            if error is not None:
                raise error
            row |= measure()
        except Exception as problem:
            row["note"] = said(problem)
        forces = row.pop("forces", None)
        if forces is not None and form == forms[0]:
            plain[L + what] = forces
        elif forces is not None and L + what in plain:
            known = plain[L + what]
            row["largest difference / RMS force"] = np.abs(forces - known).max() / np.sqrt((known**2).mean())


def gradient(bench: Bench, rows: list[Row]) -> None:
    """d⟨g_OO⟩/dθ by weights, and energies and forces of the same frames."""
    atoms, potential = box(96), jax.device_put(model(bench.sizes.training_channels, 0, bench.sizes.order))
    shape, draw = (2, bench.sizes.frames // 2), np.random.default_rng(0)
    positions = atoms.positions + 0.05 * draw.standard_normal((*shape, len(atoms), 3))
    run = Run(
        numbers=atoms.numbers, positions=positions.astype(np.float32), cells=np.repeat(atoms.cell.array[None], 2, 0),
        pbc=np.ones(3, bool), masses=np.repeat(atoms.get_masses()[None], 2, 0), potential_energy=np.zeros(shape),
        temperature=np.full(shape, 250.0), time_fs=10.0 * np.arange(1, shape[1] + 1), timestep_fs=0.5,
        outcomes=(Outcome.COMPLETED,) * 2, lengths=np.full(2, shape[1]), wall_s=1.0, ns_per_day=1.0,
    )  # fmt: skip
    frames = jax.device_put(frame_states(run, potential=potential))
    rdf = RDF("O", "O", r_max=3.5, bins=60, smearing=0.05)

    def loss(params: Any) -> Any:
        return (mean_of_frames(potential.replace(params=params), rdf, frames, 250.0, potential) ** 2).sum()

    def forces(params: Any) -> Any:
        flat = jax.tree.map(lambda leaf: jnp.asarray(leaf).reshape(-1, *leaf.shape[2:]), frames)

        def of_batch(batch: Any) -> Any:
            found = evaluate(potential.replace(params=params), batch.batch_graph(potential)[0])
            return found.energy + found.forces.reshape(len(found.energy), -1).sum(1)

        return in_batches(of_batch, flat)

    programs = {"energies and forces": forces, "gradient of a loss of g_OO": jax.grad(loss)}
    tasks = {
        name: partial(lambda program: jax.jit(program).lower(potential.params).compile(), program)
        for name, program in programs.items()
    }
    for name, call, error in at_once(bench.clock, tasks, bench.workers):
        row: Row = {"what": name, "frames": bench.sizes.frames}
        rows.append(row)
        if error is not None:
            row["error"] = said(error)
            continue
        finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(call(potential.params)))
        row["ms per frame"] = 1e3 * best_s(partial(call, potential.params), bench.seconds) / bench.sizes.frames
        row |= {} if finite else {"error": "not all numbers are finite"}
