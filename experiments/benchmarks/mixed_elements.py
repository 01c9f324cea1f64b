# /// script
# requires-python = ">=3.11"
# dependencies = ["matplotlib>=3.9,<4", "numpy>=2,<3"]
# ///
"""Crystals of many elements in one batch: what a force call and an optimiser step cost with 4, 16 and 80 elements.

The batch is the same crystals each time, strained and rattled prototypes (`jm.many_crystals`), with the same
neighbours; only the elements on their sites are dealt anew, from 4, 16 or 80 that the potential then knows. So times
differ by what depends on elements, and by nothing else. Potentials are of the MACE family and of the same sizes (2
layers, l_max 3, correlation 3, cutoff 5 Å, float32), steps those of `train_step.py`. Ours appears twice: as its
trainer, predictions and simulations use it, where graphs say how many elements they have, and where they do not say it.
Labels are random numbers, the same for all. Each contender lives in a process of its own; calls alternate. Usage:

    uv run experiments/benchmarks/mixed_elements.py [--channels 64] [--L 0] [--crystals 40] [--elements 4 16 80]
        [--kinds force step] [--calls 9] [--cores N] [--clock wall|cpu] [--json] [--out FOLDER]
        [--peers mlip mace-torch] [--mace-python PYTHON] [--mlip-python PYTHON]

Without --mace-python and --mlip-python, uv builds the peers' environments. Where others use the same cores, the
processor's own clock (--clock cpu, with --cores 1) says more than the wall's.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from contenders import (
    JAXMLIP_MODEL,
    MACE_MODEL,
    MLIP_MODEL,
    OURS_COMMAND,
    Contender,
    add_options,
    add_peers,
    describe,
    disturbance,
    in_project,
    interleaved,
    mace_command,
    machine,
    markdown_table,
    median_ms,
    mlip_command,
    plain_table,
    use_cores,
    weights_for_us,
    write,
)
from train_step import MACE, MLIP

UNSAID = "jaxmlip, elements not said"

KINDS = {"force": "force call", "step": "optimiser step"}

NOBLE = (2, 10, 18, 36, 54, 86)

OURS = """
from jaxmlip.potentials.potential import evaluate
from jaxmlip.potentials.present_elements import elements_of
from jaxmlip.systems.batches import make_batches, make_samples
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.problem import TrainingProblem, TrainingSettings
from jaxmlip.training.stacking import stacked_controls, stacked_potentials, stacked_states
from jaxmlip.training.step import update
facts = {}
def prepare(order):
    potential = build(order)
    frames = [Frame(atoms_of(each), each["energy"], np.array(each["forces"])) for each in order["structures"]]
    samples = make_samples(frames, potential.cutoff, potential.inner_cutoff, potential.references)
    (batch,) = make_batches(samples, len(samples), tiers=4)
    if SAID:
        said = elements_of(potential, [frame.atoms.numbers for frame in frames])
        batch = batch.replace(graph=batch.graph.replace(elements=said))
    facts.update(atoms=int(batch.graph.n_atoms), slots=int(batch.graph.n_slots))
    if order["kind"] == "force":
        graph, call = jax.device_put(batch.graph), jax.jit(lambda potential, graph: evaluate(potential, graph))
        return lambda: jax.block_until_ready(call(potential, graph)).energy.sum()
    settings = TrainingSettings()
    problem = TrainingProblem(potential, samples, samples, settings.terms(), settings.terms())
    controls = stacked_controls([problem], [settings]).replace(learning_rate=np.array([1e-3]))
    fixed = (stacked_potentials([problem]), jax.tree.map(lambda leaf: leaf[None], batch), controls)
    lender, stacked, controls = jax.device_put(fixed)
    state = [jax.device_put(stacked_states([problem]))]
    def call():
        state[0], report = jax.block_until_ready(update(lender, state[0], stacked, controls))
        return report.loss[0]
    return call
def plain(name, result):
    return {"result": float(result), **facts}
"""

MACE_FORCE = """
step = prepare
def prepare(order):
    if order["kind"] == "step":
        return step(order)
    model, batch = build(order), graph(order["structures"], order["species"])
    for parameter in model.parameters():
        parameter.requires_grad = False
    return lambda: model(batch, training=False, compute_force=True)["energy"].sum()
def plain(name, result):
    return {"result": result.item()}
"""

MLIP_FORCE = """
step = prepare
def prepare(order):
    if order["kind"] == "step":
        return step(order)
    force_field, inputs = build(order), graph(order["structures"])
    params = jax.device_put(force_field.params)
    call = jax.jit(lambda params, graph: force_field.predictor.apply(params, graph).to_prediction())
    return lambda: jax.block_until_ready(call(params, inputs)).energy.sum()
def plain(name, result):
    return {"result": float(result)}
"""


def crystals(number: int) -> list[dict[str, Any]]:
    """Crystals with random labels, before their elements are dealt."""
    made = in_project(
        "import json; import jaxmlip as jm\n"
        "print(json.dumps([{'numbers': atoms.numbers.tolist(), 'positions': atoms.positions.tolist(),"
        f" 'cell': atoms.cell.tolist()}} for atoms in jm.many_crystals({number}, seed=0)]))"
    )
    draw = np.random.default_rng(0)
    for structure in made:
        structure["energy"] = float(draw.normal())
        structure["forces"] = draw.normal(size=(len(structure["numbers"]), 3)).tolist()
    return made


def with_elements(structures: list[dict[str, Any]], species: list[int]) -> list[dict[str, Any]]:
    """The same crystals with other elements: each has as many different ones as before, dealt in turns."""
    turns, dealt = itertools.cycle(species), []
    for structure in structures:
        new = {old: next(turns) for old in sorted(set(structure["numbers"]))}
        dealt.append(structure | {"numbers": [new[old] for old in structure["numbers"]]})
    return dealt


def neighbors(structures: list[dict[str, Any]]) -> float:
    """Mean number within 5 Å."""
    shown = [{name: structure[name] for name in ("numbers", "positions", "cell")} for structure in structures]
    return in_project(
        "import json; from ase import Atoms; from ase.neighborlist import neighbor_list\n"
        f"made = [Atoms(pbc=True, **each) for each in json.loads({json.dumps(shown)!r})]\n"
        "print(sum(len(neighbor_list('i', atoms, 5.0)) for atoms in made) / sum(map(len, made)))"
    )


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description="Mixed batches of many elements: jaxmlip against other packages")
    add_options(parser, channels=64, calls=9)
    add_peers(parser, "mlip", "mace-torch")
    parser.add_argument("--crystals", type=int, default=40, help="in the batch; 40 by default")
    parser.add_argument("--elements", type=int, nargs="+", default=[4, 16, 80], help="4 16 80 by default")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="force calls, steps, or both")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="wall by default")
    options = parser.parse_args()
    table = [number for number in range(1, 119) if number not in NOBLE]
    if not 4 <= min(options.elements) <= max(options.elements) <= len(table):
        parser.error(f"--elements are {options.elements}, but they must be from 4 to {len(table)}.")
    here = machine(use_cores(options.cores))
    structures = crystals(options.crystals)
    orders = {}
    for number in options.elements:
        batch = {"species": table[:number], "structures": with_elements(structures, table[:number])}
        orders[number] = batch | {"channels": options.channels, "L": options.L, "neighbors": neighbors(structures)}

    # The peer's step deals with graphs of the elements that its `build` was told of.
    mace = MACE_MODEL + MACE.replace('graph(order["structures"])', 'graph(order["structures"], order["species"])')
    programs = {
        "jaxmlip": (OURS_COMMAND, "SAID = True" + JAXMLIP_MODEL + OURS),
        UNSAID: (OURS_COMMAND, "SAID = False" + JAXMLIP_MODEL + OURS),
        "mlip": (mlip_command(options.mlip_python), MLIP_MODEL + MLIP + MLIP_FORCE),
        "mace-torch": (mace_command(options.mace_python), mace + MACE_FORCE),
    }
    ms, results, same = timed(programs, orders, options)
    columns = [(kind, number) for kind in options.kinds for number in options.elements]
    header = ["ms", *(f"{KINDS[kind]}, {number} elements" for kind, number in columns)]
    rows = []
    for who in ms:
        cells = (f"{ms[who][column]:.0f} ({ms[who][column] / ms['jaxmlip'][column]:.2f})" for column in columns)
        rows.append([who, *cells])
    sizes = [len(structure["numbers"]) for structure in structures]
    clock = "processor time" if options.clock == "cpu" else "wall time"
    notes = [
        f"Median {clock} of {options.calls} calls, and in parentheses its ratio to ours: {len(sizes)} crystals of "
        f"{min(sizes)} to {max(sizes)} atoms ({sum(sizes)} in all, with {orders[options.elements[0]]['neighbors']:.0f} "
        f"neighbours each), {options.channels} channels, L = {options.L}, float32.",
        describe(here),
        f"jaxmlip pads the batch to {results['jaxmlip']['atoms']} atoms in up to four tiers of at most "
        f"{results['jaxmlip']['slots']} neighbour slots, mlip to one atom more than there are; mace-torch does not "
        "pad.",
        f"jaxmlip has mace-torch's weights: sums of energies and first losses differ by up to {same:.1e} of theirs."
        if same is not None
        else "All have random weights of their own: results cannot be compared.",
    ]
    notes += disturbance(here)
    print("\n".join([*notes[:2], "", plain_table(header, rows), "", *notes[2:]]))
    if options.out:
        name = f"mixed_elements_{options.channels}_L{options.L}"
        title = "Mixed batches of 4, 16 and 80 elements" if options.elements == [4, 16, 80] else "Mixed batches"
        write(options.out, name, title, notes[:2], markdown_table(header, rows), notes[2:])
    if options.json:
        said = {who: {f"{kind} {number}": each[kind, number] for kind, number in columns} for who, each in ms.items()}
        print(
            json.dumps({"ms": said, "atoms": sum(sizes), "clock": options.clock, "difference": same, "machine": here})
        )


def timed(
    programs: Mapping[str, tuple[Sequence[str], str]], orders: dict[int, dict[str, Any]], options: argparse.Namespace
) -> tuple[dict[str, dict[tuple[str, int], float]], dict[str, dict[str, Any]], float | None]:
    """Median times by contender, kind of call and number of elements.

    Returns:
        The times in ms; what each contender said last; and the largest relative difference of the first result of ours
        from mace-torch's, if ours has its weights.
    """
    cpu = {"JAX_PLATFORMS": "cpu"}
    started = [who for who in programs if who.startswith("jaxmlip") or who in options.peers]
    contenders = {who: Contender(who, *programs[who], cpu) for who in started}
    ms: dict[str, dict[tuple[str, int], float]] = {who: {} for who in started}
    said: dict[str, dict[str, Any]] = {}
    differences = []
    tasks = [(number, kind) for number in orders for kind in options.kinds]
    for number, kind in tasks:
        order, name = orders[number], f"{kind} {number}"
        with tempfile.TemporaryDirectory() as folder:
            weights = weights_for_us(contenders, folder, order)
            for who, contender in contenders.items():
                said[who] = contender.ask("prepare", name, kind=kind, weights=weights, **order)
        if weights is not None:
            known = said["mace-torch"]["result"]
            differences += [abs(said[who]["result"] - known) / abs(known) for who in ("jaxmlip", UNSAID)]
        clock = "cpu_s" if options.clock == "cpu" else "s"
        for who, times in interleaved(contenders, name, options.calls, clock=clock).items():
            ms[who][kind, number] = median_ms(times)
    return ms, said, max(differences, default=None)


if __name__ == "__main__":
    main()
