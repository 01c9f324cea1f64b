# /// script
# requires-python = ">=3.11"
# dependencies = ["matplotlib>=3.9,<4"]
# ///
"""One optimiser step on five water clusters: the trainer here against mace-torch and mlip.

A step is the gradient of a Huber loss of energies and forces by the parameters, clipping by the global norm, AdamW, and
the moving average of the parameters. The batch is the first five frames of `$JAXMLIP_DATA/ice_maceoff/
clusters_5.0A.extxyz` (57, 60, 66, 57 and 57 atoms: 297 in all), with energies relative to the mean per atom. The
potentials are of the MACE family and of the same sizes (2 layers, l_max 3, correlation 3, cutoff 5 Å, float32). Each
contender lives in a process of its own, with its own environment, and has all cores while it is at work; steps
alternate, so that whatever else the machine does hits all alike. Batches are made beforehand. Usage:

    uv run experiments/benchmarks/train_step.py [--channels 64] [--L 0] [--calls 9] [--cores N] [--json] [--out FOLDER]
        [--peers mlip mace-torch] [--mace-python PYTHON] [--mlip-python PYTHON] [--chgnet [--chgnet-python PYTHON]]

Without --mace-python and --mlip-python, uv builds the peers' environments.

With --chgnet it is CHGNet instead, with its published weights: the trainer here against the package `chgnet` with
torch, on `CRYSTALS` strained and rattled crystals of many elements with energies, forces, stresses and magnetic moments
of the r2SCAN teacher. The original's step is that of its own trainer, Adam without clipping or moving average.
"""

import argparse
import json
import os
from pathlib import Path

from contenders import (
    JAXMLIP_MODEL,
    MACE_MODEL,
    MLIP_MODEL,
    OURS_COMMAND,
    add_options,
    add_peers,
    bars,
    describe,
    disturbance,
    in_project,
    mace_command,
    machine,
    markdown_table,
    measure,
    mlip_command,
    peer_command,
    plain_table,
    use_cores,
    write,
)

FRAMES = range(5)

OURS = """
from jaxmlip.systems.batches import make_batches, make_samples
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.problem import TrainingProblem, TrainingSettings
from jaxmlip.training.stacking import stacked_controls, stacked_potentials, stacked_states
from jaxmlip.training.step import update
facts = {}
def prepare(order):
    potential = build(order)
    frames = [frame_of(structure) for structure in order["structures"]]
    samples = make_samples(frames, potential.cutoff, potential.inner_cutoff, potential.references)
    (batch,) = make_batches(samples, len(samples), tiers=6)
    settings = settings_of(order)
    problem = TrainingProblem(potential, samples, samples, settings.terms(), settings.terms())
    controls = stacked_controls([problem], [settings]).replace(learning_rate=np.array([1e-3]))
    fixed = (stacked_potentials([problem]), jax.tree.map(lambda leaf: leaf[None], batch), controls)
    lender, stacked, controls = jax.device_put(fixed)
    state, compiled = [jax.device_put(stacked_states([problem]))], []
    facts.update(
        parameters=count(potential.params), atoms=int(batch.graph.n_atoms), slots=int(batch.graph.n_slots)
    )
    def call():
        if not compiled:
            arguments = (lender, state[0], stacked, controls)
            compiled.append(update.lower(*arguments).compile())
            facts.update(temporary_MiB=compiled[0].memory_analysis().temp_size_in_bytes / 2**20)
        state[0], report = jax.block_until_ready(compiled[0](lender, state[0], stacked, controls))
        return report.loss[0]
    return call
def plain(name, loss):
    return {"loss": float(loss), **facts}
"""

OURS_MACE = """
def frame_of(structure):
    return Frame(atoms_of(structure), structure["energy"], np.array(structure["forces"]))
def settings_of(order):
    return TrainingSettings()
"""

MACE = """
from torch.nn.functional import huber_loss
from torch_ema import ExponentialMovingAverage
def prepare(order):
    model, batch = build(order), graph(order["structures"])
    energies = torch.tensor([structure["energy"] for structure in order["structures"]])
    forces = torch.cat([torch.tensor(structure["forces"]) for structure in order["structures"]])
    atoms = torch.diff(batch["ptr"])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=5e-7)
    average = ExponentialMovingAverage(model.parameters(), decay=0.99)
    def call():
        optimiser.zero_grad(set_to_none=True)
        output = model(batch, training=True, compute_force=True)
        loss = huber_loss(output["energy"] / atoms, energies / atoms, delta=0.01)
        loss = loss + 10.0 * huber_loss(output["forces"], forces, delta=0.01)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
        optimiser.step()
        average.update()
        return loss
    return call
def plain(name, loss):
    return {"loss": loss.item(), "parameters": count(models[name])}
"""

MLIP = """
import optax
from mlip.models.loss import HuberLoss
from mlip.training.ema import exponentially_moving_average
from mlip.training.training_state import init_training_state
from mlip.training.training_step import make_train_step
facts = {}
def prepare(order):
    force_field, batch = build(order), graph(order["structures"])
    optimiser = optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(1e-3, weight_decay=5e-7))
    average = exponentially_moving_average(0.99)
    loss = HuberLoss(lambda _: 1.0, lambda _: 10.0, lambda _: 0.0)
    step = make_train_step(force_field.predictor, loss, optimiser, average, len(order["structures"]))
    state = [init_training_state(force_field.params, optimiser, average)]
    facts.update(parameters=count(force_field.params))
    def call():
        state[0], metrics = jax.block_until_ready(step(state[0], batch, 0))
        return metrics["loss"]
    return call
def plain(name, loss):
    return {"loss": float(loss), **facts}
"""


CRYSTALS = 16

OURS_CHGNET = """
import jax, numpy as np
from jaxmlip.potentials.chgnet_checkpoint import load_chgnet
from jaxmlip.systems.dataset import MAGMOMS
from jaxmlip.units import GPA
def build(order):
    return load_chgnet("gga")
def count(params):
    return sum(np.size(leaf) for leaf in jax.tree.leaves(params))
def frame_of(structure):
    atoms = atoms_of(structure)
    atoms.arrays[MAGMOMS] = np.array(structure["magmoms"])
    return Frame(atoms, structure["energy"], np.array(structure["forces"]), GPA * np.array(structure["stress"]))
def settings_of(order):
    stress = {"stress_weight": 0.1 / GPA**2, "huber_deltas": {"stress": 0.1 * GPA}}
    return TrainingSettings(huber_delta=0.1, forces_weight=1.0, magmoms_weight=0.1, **stress)
"""

CHGNET = """
import torch
from chgnet.model.model import CHGNet
from chgnet.trainer.trainer import CombinedLoss
from pymatgen.io.ase import AseAtomsAdaptor
facts = {}
def prepare(order):
    model = CHGNet.load(model_name="0.3.0", use_device="cpu", verbose=False)
    model.train()
    structures = order["structures"]
    graphs = [model.graph_converter(AseAtomsAdaptor.get_structure(atoms_of(each))) for each in structures]
    targets = {key: [torch.tensor(each[name]) for each in structures]
               for key, name in (("f", "forces"), ("s", "stress"), ("m", "magmoms"))}
    targets["e"] = torch.tensor([each["energy"] / len(each["numbers"]) for each in structures])
    ratios = {"energy_loss_ratio": 1, "force_loss_ratio": 1, "stress_loss_ratio": 0.1, "mag_loss_ratio": 0.1}
    criterion = CombinedLoss(target_str="efsm", criterion="Huber", delta=0.1, **ratios)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    facts["parameters"] = sum(p.numel() for p in model.parameters())
    def call():
        optimiser.zero_grad()
        loss = criterion(targets, model(graphs, task="efsm"))["loss"]
        loss.backward()
        optimiser.step()
        return loss
    return call
def plain(name, loss):
    return {"loss": loss.item(), **facts}
"""


def crystals() -> dict:
    """Crystals with labels of the r2SCAN teacher, stresses in GPa."""
    return in_project(
        "import json; import jaxmlip as jm; from jaxmlip.units import GPA\n"
        "teacher = jm.load('chgnet:r2scan')\n"
        f"frames = jm.label(jm.many_crystals({CRYSTALS}, elements=teacher.species, seed=0), teacher, stress=True)\n"
        "print(json.dumps({'structures': [{'numbers': frame.atoms.numbers.tolist(),"
        " 'positions': frame.atoms.positions.tolist(), 'cell': frame.atoms.cell.tolist(), 'energy': frame.energy,"
        " 'forces': frame.forces.tolist(), 'stress': (frame.stress / GPA).tolist(),"
        " 'magmoms': frame.magmoms.tolist()} for frame in frames]}))"
    )


def clusters(path: Path) -> dict:
    """The frames, with energies relative to the mean per atom, and the mean number of neighbours within 5 Å."""
    return in_project(
        "import json; import numpy as np; from ase.neighborlist import neighbor_list\n"
        "from jaxmlip.systems.dataset import read_frames\n"
        f"index = '{FRAMES.start}:{FRAMES.stop}'\n"
        f"frames = read_frames({str(path)!r}, energy_key='off23_energy', forces_key='off23_forces', index=index)\n"
        "sizes = np.array([len(frame.atoms) for frame in frames])\n"
        "energies = np.array([frame.energy for frame in frames])\n"
        "energies -= sizes * energies.sum() / sizes.sum()\n"
        "pairs = sum(len(neighbor_list('i', frame.atoms, 5.0)) for frame in frames)\n"
        "print(json.dumps({'neighbors': pairs / sizes.sum(), 'structures': ["
        "{'numbers': frame.atoms.numbers.tolist(), 'positions': frame.atoms.positions.tolist(),"
        " 'energy': energy, 'forces': frame.forces.tolist()} for frame, energy in zip(frames, energies.tolist())]}))"
    )


def against_chgnet(options: argparse.Namespace, here: dict) -> None:
    """CHGNet against the original."""
    batch = crystals()
    sizes = [len(structure["numbers"]) for structure in batch["structures"]]
    elements = len({z for structure in batch["structures"] for z in structure["numbers"]})
    programs = {
        "jaxmlip": (OURS_COMMAND, OURS_CHGNET + OURS),
        "chgnet": (peer_command(options.chgnet_python, "chgnet==0.4.2", "torch"), CHGNET),
    }
    measured = measure(programs, ["chgnet"], batch, options.calls)
    first = measured.first
    header = [*measured.header("step"), "first loss"]
    rows = [[*row, f"{first[row[0]]['loss']:.6g}"] for row in measured.rows()]
    notes = [
        f"One optimiser step of CHGNet 0.3.0 on {len(sizes)} crystals ({sum(sizes)} atoms of {elements} elements) with "
        f"energies, forces, stresses and magnetic moments, float32; median of {options.calls} steps.",
        describe(here),
        f"jaxmlip pads the batch to {first['jaxmlip']['atoms']} atoms of {first['jaxmlip']['slots']} neighbour slots; "
        "chgnet does not pad. Both have the published weights: their first losses should agree.",
        "jaxmlip's step clips the gradient and averages the parameters, chgnet's does not.",
    ]
    notes += disturbance(here)
    print("\n".join([*notes[:2], "", plain_table(header, rows), "", *notes[2:]]))
    if options.out:
        write(
            options.out,
            "train_step_chgnet",
            "One optimiser step of CHGNet",
            notes[:2],
            markdown_table(header, rows),
            notes[2:],
        )
        title = f"One optimiser step of CHGNet on {len(sizes)} crystals ({sum(sizes)} atoms)\n{describe(here)}"
        bars(options.out / "train_step_chgnet.png", title, measured.ms, "time of a step")
    if options.json:
        losses = {who: said["loss"] for who, said in first.items()}
        said = {"first_loss": losses, "atoms": sum(sizes), "calls": options.calls, "machine": here}
        print(json.dumps(measured.result() | said))


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description="One optimiser step: jaxmlip against other packages, on the CPU")
    add_options(parser, channels=64, calls=9)
    add_peers(parser, "mlip", "mace-torch")
    parser.add_argument("--chgnet", action="store_true", help="CHGNet against the original, instead")
    parser.add_argument("--chgnet-python", help="interpreter with chgnet and torch; by default uv makes one")
    options = parser.parse_args()
    if options.chgnet:
        against_chgnet(options, machine(use_cores(options.cores)))
        return
    if "JAXMLIP_DATA" not in os.environ:
        parser.error("set JAXMLIP_DATA to the folder that holds ice_maceoff/clusters_5.0A.extxyz.")
    path = Path(os.environ["JAXMLIP_DATA"]).absolute() / "ice_maceoff" / "clusters_5.0A.extxyz"
    if not path.is_file():
        parser.error(f"there is no file {path}.")
    here = machine(use_cores(options.cores))
    batch = clusters(path)
    sizes = [len(structure["numbers"]) for structure in batch["structures"]]

    programs = {
        "jaxmlip": (OURS_COMMAND, JAXMLIP_MODEL + OURS_MACE + OURS),
        "mlip": (mlip_command(options.mlip_python), MLIP_MODEL + MLIP),
        "mace-torch": (mace_command(options.mace_python), MACE_MODEL + MACE),
    }
    order = batch | {"channels": options.channels, "L": options.L}
    measured = measure(programs, options.peers, order, options.calls)

    first = measured.first
    header = [*measured.header("step"), "first loss"]
    rows = [[*row, f"{first[row[0]]['loss']:.6g}"] for row in measured.rows()]
    named = f"{FRAMES.start} to {FRAMES.stop - 1} ({' + '.join(map(str, sizes))} = {sum(sizes)} atoms)"
    task = f"{options.channels} channels, L = {options.L}, float32"
    notes = [
        f"One optimiser step on frames {named} of {path.name}, {task}; median of {options.calls} steps.",
        describe(here),
        f"jaxmlip pads the batch to {first['jaxmlip']['atoms']} atoms in up to six tiers of at most "
        f"{first['jaxmlip']['slots']} neighbour slots, mlip to one atom more than there are; mace-torch does not pad.",
        "jaxmlip has mace-torch's weights: their first losses should agree. mlip's are its own."
        if measured.same_weights
        else "All have random weights of their own: the losses cannot be compared.",
        "mlip's loss of forces is its own: a Huber loss whose threshold falls with the force.",
    ]
    notes += disturbance(here)
    print("\n".join([*notes[:2], "", plain_table(header, rows), "", *notes[2:]]))

    if options.out:
        name = f"train_step_{options.channels}_L{options.L}"
        write(options.out, name, "One optimiser step", notes[:2], markdown_table(header, rows), notes[2:])
        title = f"One optimiser step on {len(sizes)} water clusters ({sum(sizes)} atoms), {task}\n{describe(here)}"
        bars(options.out / f"{name}.png", title, measured.ms, "time of a step")
    if options.json:
        losses = {who: said["loss"] for who, said in first.items()}
        task = {"channels": options.channels, "L": options.L, "atoms": sum(sizes), "calls": options.calls}
        said = {"first_loss": losses, "frames": list(FRAMES), "machine": here}
        print(json.dumps(measured.result() | task | said))


if __name__ == "__main__":
    main()
