# /// script
# requires-python = ">=3.11"
# dependencies = ["matplotlib>=3.9,<4"]
# ///
"""What derivatives of averages by all parameters cost, in energies and forces of the same frames.

Frames are of ice Ih, 96 atoms, rattled. The gradient of a loss of g_OO (120 bins) is by the covariance: values, one
backward pass of energies by parameters, the means that centre it, all of what `jm.gradient` does but for starting up.
The Jacobian is of all bins: a backward pass of every frame. Usage:

    uv run experiments/benchmarks/observable_gradients.py [--channels 64] [--L 0] [--replicas 8] [--frames 16]
        [--calls 3] [--cores N] [--json] [--out FOLDER]
"""

import argparse
import json

from contenders import (
    JAXMLIP_MODEL,
    OURS_COMMAND,
    Contender,
    add_options,
    describe,
    disturbance,
    ice,
    interleaved,
    machine,
    markdown_table,
    median_ms,
    plain_table,
    use_cores,
    write,
)

PROGRAM = """
import dataclasses
from jaxmlip.observables.structure import RDF
from jaxmlip.potentials.potential import evaluate
from jaxmlip.simulation.trajectory import Outcome, Run
from jaxmlip.validation.averages import frame_states
from jaxmlip.validation.frame_gradients import in_batches
from jaxmlip.validation.gradients import gradient
def prepare(order):
    atoms, potential = atoms_of(order["structure"]), build(order)
    shape = order["replicas"], order["frames"]
    rng = np.random.default_rng(0)
    moved = atoms.positions + 0.05 * rng.normal(size=(*shape, len(atoms), 3))
    run = Run(
        numbers=atoms.numbers, positions=moved.astype(np.float32), cells=np.repeat(atoms.cell.array[None], shape[0], 0),
        pbc=np.ones(3, bool), masses=np.repeat(atoms.get_masses()[None], shape[0], 0),
        potential_energy=rng.normal(size=shape), temperature=rng.normal(250.0, 10.0, size=shape),
        time_fs=10.0 * np.arange(1, shape[1] + 1), timestep_fs=0.5, outcomes=(Outcome.COMPLETED,) * shape[0],
        lengths=np.full(shape[0], shape[1]), wall_s=1.0, ns_per_day=1.0,
    )
    rdf = RDF("O", "O", r_max=6.0, bins=120)
    if order["what"] == "forces":
        frames = frame_states(run, potential=potential)
        flat = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf).reshape(-1, *leaf.shape[2:]), frames)
        def of_batch(batch):
            graph, fits = batch.batch_graph(potential)
            found = evaluate(potential, graph)
            return found.energy + found.forces.reshape(len(found.energy), -1).sum(1)
        program = jax.jit(lambda flat: in_batches(of_batch, flat))
        return lambda: jax.block_until_ready(program(flat))
    loss = (lambda mean: (mean ** 2).sum()) if order["what"] == "loss" else None
    def call():
        return gradient(run, potential, rdf, temperature_K=250.0, loss=loss, equilibration=0)
    return call
def plain(name, result):
    return {}
"""

WAYS = {"energies and forces": "forces", "gradient of a loss": "loss", "Jacobian of 120 bins": "jacobian"}


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description="Derivatives of an RDF by all parameters")
    add_options(parser, channels=64, calls=3)
    parser.add_argument("--replicas", type=int, default=8, help="8 by default")
    parser.add_argument("--frames", type=int, default=16, help="of each replica; 16 by default")
    options = parser.parse_args()
    here = machine(use_cores(options.cores))
    box = ice(32)
    contenders = {way: Contender(way, OURS_COMMAND, JAXMLIP_MODEL + PROGRAM) for way in WAYS}
    for way, contender in contenders.items():
        order = {name: getattr(options, name) for name in ("channels", "L", "replicas", "frames")}
        contender.ask("prepare", "run", structure=box, neighbors=box["neighbors"], what=WAYS[way], **order)
    times = interleaved(contenders, "run", options.calls, warm_up=1)
    frames = options.replicas * options.frames
    ms = {way: median_ms(each) / frames for way, each in times.items()}
    ratios = {way: each / ms["energies and forces"] for way, each in ms.items()}
    rows = [[way, f"{ms[way]:.3g}", f"{ratios[way]:.2f}"] for way in WAYS]
    note = (
        f"{options.replicas} × {options.frames} frames of 96 atoms of ice Ih, {options.channels} channels, "
        f"L = {options.L}; median of {options.calls} calls."
    )
    header = ["", "ms per frame", "ratio"]
    print("\n".join([note, describe(here), "", plain_table(header, rows), *disturbance(here)]))
    if options.out:
        notes = [note, describe(here)]
        write(
            options.out, "observable_gradients", "Derivatives", notes, markdown_table(header, rows), disturbance(here)
        )
    if options.json:
        print(json.dumps({"ms_per_frame": ms, "ratio": ratios, "machine": here}))


if __name__ == "__main__":
    main()
