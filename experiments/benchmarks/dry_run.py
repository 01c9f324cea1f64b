"""What the largest runs would need, without the machines: memory by compiled analysis on virtual devices, and cost.

Two cases: a potential for 89 elements pretrained on 1.6 million structures (the size of MPtrj) by 8 and by 64 devices
that share every batch, and molecular dynamics of 10⁵ atoms on one device. Nothing is computed: programs are compiled
for arrays of which there are shapes alone, for so many virtual devices of this machine, in the form for accelerators,
and the compiler says what memory each device needs (that for CPUs does; one for a card fuses otherwise). Cost comes
from throughputs that were measured elsewhere, and only from those: of a training step on the CPU in
`results/train_step_128_L0.md`, and, if they are given, of the file `accelerator.json` that `accelerator.py` has written
on a card. Usage:

    uv run python experiments/benchmarks/dry_run.py [--channels 128] [--L 1] [--devices 8 64] [--graphs 16]
        [--measured accelerator.json] [--out FOLDER]
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

STRUCTURES, ATOMS = 1_600_000, 31
"""Of MPtrj, and atoms of one on average (Deng et al., Nat. Mach. Intell. 5, 1031 (2023): 1,580,395 structures)."""

MOST_DEVICES = 64

CPU_STEP_S, CPU_ATOMS = 0.173, 297
"""A training step of 128 channels, L = 0, float32, on two cores of an AMD EPYC: results/train_step_128_L0.md."""


def main() -> None:
    """Compile the cases and write the page."""
    parser = argparse.ArgumentParser(description="Memory and cost of the largest runs, without running them")
    parser.add_argument("--channels", type=int, default=128, help="of the potential that is trained; 128 by default")
    parser.add_argument("--L", type=int, choices=(0, 1), default=1, help="largest l of messages; 1 by default")
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64], help="that share a batch; 8 and 64")
    parser.add_argument("--graphs", type=int, default=16, help="structures of a batch on each device; 16 by default")
    parser.add_argument("--atoms", type=int, default=47**3, help="of the simulation, about; 103,823 by default")
    parser.add_argument("--measured", type=Path, help="accelerator.json of a card")
    parser.add_argument("--out", type=Path, help="folder for dry_run.md and dry_run.json")
    options = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={max(options.devices)}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    rows = [trained(options, devices) for devices in options.devices]
    rows.append(simulated(options))
    said = cost(options)
    header = ["case", "devices", "atoms on each", "GiB on each", "of it arguments", "compiled in s"]
    cells = [[str(row[key]) for key in header] for row in rows]
    from contenders import markdown_table, plain_table

    print("\n" + plain_table(header, cells) + "\n\n" + "\n".join(said))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        page = ["# The largest runs, without running them", (__doc__ or "").split(" Usage:")[0].split("\n\n", 1)[1]]
        page += [markdown_table(header, cells), *said]
        (options.out / "dry_run.md").write_text("\n\n".join(page) + "\n")
        (options.out / "dry_run.json").write_text(json.dumps({"rows": rows, "cost": said}, indent=1) + "\n")


def trained(options: argparse.Namespace, devices: int) -> dict[str, Any]:
    """A training step of so many devices."""
    import jax
    import numpy as np

    from jaxmlip.potentials.equivariant import Equivariant
    from jaxmlip.systems.batches import make_batches, make_samples
    from jaxmlip.systems.crystals import many_crystals
    from jaxmlip.systems.dataset import Frame
    from jaxmlip.training.parallel import make_mesh
    from jaxmlip.training.problem import TrainingProblem, TrainingSettings
    from jaxmlip.training.stacking import stacked_controls, stacked_potentials, stacked_states
    from jaxmlip.training.step import update

    model = Equivariant(channels=options.channels, l_max=3, correlation=3, message_l=options.L, cutoff=5.0)
    potential = model.build(range(1, 90), average_neighbors=60.0).replace(form="accelerator")
    crystals = many_crystals(200, seed=0)
    # Supercells of about the mean size, as many as a device has in a batch.
    boxes = [atoms.repeat((max(1, round(ATOMS / len(atoms))), 1, 1)) for atoms in crystals]
    boxes = [atoms for atoms in boxes if max(atoms.numbers) < 90][: options.graphs]
    frames = [Frame(atoms, 0.0, np.zeros((len(atoms), 3)), np.zeros((3, 3))) for atoms in boxes]
    samples = make_samples(frames, potential.cutoff, 0.0, np.zeros(119))
    (batch,) = make_batches(samples, len(samples))
    settings = TrainingSettings(stress_weight=1.0)
    problem = TrainingProblem(potential, samples, samples, settings.terms(), settings.terms())

    def shaped(tree: Any, *axes: int) -> Any:
        def of(leaf: Any) -> jax.ShapeDtypeStruct:
            dtype = jax.dtypes.canonicalize_dtype(np.asarray(leaf).dtype)
            return jax.ShapeDtypeStruct((*axes, *np.shape(leaf)), dtype)

        return jax.tree.map(of, tree)

    controls = stacked_controls([problem], [settings]).replace(learning_rate=np.zeros(1))
    states, lender = shaped(stacked_states([problem])), shaped(stacked_potentials([problem]))
    start = time.perf_counter()
    mesh = make_mesh(devices)
    compiled = update.lower(lender, states, shaped(batch, 1, devices), shaped(controls), mesh=mesh).compile()
    return row_of(f"training step, {options.channels} channels, L = {options.L}", devices, batch.graph, compiled, start)


def simulated(options: argparse.Namespace) -> dict[str, Any]:
    """A block of dynamics on one device."""
    from ase.build import bulk

    from jaxmlip.potentials.equivariant import Equivariant
    from jaxmlip.simulation.engine import advance
    from jaxmlip.simulation.ensembles import NVT
    from jaxmlip.simulation.options import Options
    from jaxmlip.simulation.session import make_session

    model = Equivariant(channels=64, l_max=3, message_l=1, cutoff=5.0)
    potential = model.build([8], average_neighbors=20.0).replace(form="accelerator")
    atoms = bulk("O", "sc", a=2.2, cubic=True).repeat(round(options.atoms ** (1 / 3)))  # 56 neighbours; ice has 48
    driver = make_session([potential], atoms, NVT(300.0), Options(steps=100, on_failure="mark")).driver
    start = time.perf_counter()
    compiled = advance.lower(*driver._arguments(100, 0.5)).compile()
    return row_of("NVT, 64 channels, L = 1", 1, len(atoms), compiled, start)


def row_of(case: str, devices: int, what: Any, compiled: Any, start: float) -> dict[str, Any]:
    """What the compiler says."""
    from jaxmlip.memory import GIB, needed_bytes

    atoms = what if isinstance(what, int) else int(what.n_atoms)
    row = {"case": case, "devices": devices, "atoms on each": atoms}
    row |= {"GiB on each": round(needed_bytes(compiled) / GIB, 2)}
    row |= {"of it arguments": round(compiled.memory_analysis().argument_size_in_bytes / GIB, 2)}
    row |= {"compiled in s": round(time.perf_counter() - start)}
    print(row, flush=True)
    return row


def cost(options: argparse.Namespace) -> list[str]:
    """An epoch from throughputs that were measured, and where."""
    epoch = STRUCTURES * ATOMS
    hours = epoch / CPU_ATOMS * CPU_STEP_S / 3600
    said = [
        f"An epoch of {STRUCTURES:,} structures of {ATOMS} atoms: {hours:.1f} h on two cores of an AMD EPYC at 128 "
        f"channels, L = 0, from the measured {1e3 * CPU_STEP_S:.0f} ms of a step of {CPU_ATOMS} atoms "
        "(results/train_step_128_L0.md). No training step of L = 1 and none of 89 elements has been timed."
    ]
    if options.measured is None:
        return [*said, "No throughput of a card is known here: give --measured accelerator.json."]
    measured = json.loads(options.measured.read_text())
    for row in measured["tables"].get("models", []):
        if row.get("what") == "train" and row.get("models") == 1 and "µs per atom" in row:
            us = row["µs per atom"]
            hours = 1e-6 * us * epoch / 3600
            said.append(
                f"On one {measured['device']}: {hours:.1f} h an epoch, from {us:.3g} µs for each atom of a step "
                f"(small: {measured['small']}), with nothing said of how several share a batch."
            )
    return said


if __name__ == "__main__":
    main()
