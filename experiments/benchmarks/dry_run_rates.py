"""Time per atom of what studies do, by which `jaxmlip run --dry-run` estimates: force calls and training steps.

Labels come from CHGNet, the structures are ice and crystals of many elements, and times are those of whole calls of the
public functions after the first, in which programs are compiled. Processor time is measured, so that other work on the
machine does not count; on one core it is the time that a quiet core would take. Usage:

    taskset -c 0 uv run python experiments/benchmarks/dry_run_rates.py
"""

import time

import numpy as np

import jaxmlip as jm
from jaxmlip.training.distill import distillation_problem
from jaxmlip.training.trainer import train

CHANNELS, LAYERS, CUTOFF = 32, 2, 4.5
EPOCHS = 3
SETTINGS = jm.TrainingSettings(epochs=EPOCHS, batch_size=8, tiers=1)


def frames_of_crystals() -> list[jm.Frame]:
    """Rattled crystals of a few elements, with labels."""
    crystals = jm.many_crystals(number=32, elements=["Li", "Na", "Mg", "O", "F", "Cl"], seed=0)
    return jm.label(crystals, jm.load("chgnet:gga"), stress=True)


def said(what: str, seconds: float, atoms: float) -> None:
    """One line of the table."""
    print(f"{what}: {1e6 * seconds / atoms:.0f} µs per atom ({seconds:.3g} s, {atoms:.0f} atoms)", flush=True)


def time_of_labels(name: str, potential: jm.Potential, structures: list) -> None:
    """Of a second call, with stress as studies of crystals have it."""
    jm.predict(potential, structures, stress=True)
    start = time.process_time()
    jm.predict(potential, structures, stress=True)
    said(f"labels, {name}", time.process_time() - start, sum(map(len, structures)))


def time_of_training(name: str, model: jm.Equivariant | jm.CHGNetModel, frames: list[jm.Frame]) -> None:
    """Of the quickest epoch after the first; the validation of two frames is in it."""
    ends = [time.process_time()]
    problem = distillation_problem(model, frames[2:], frames[:2], settings=SETTINGS)
    train(problem, SETTINGS, progress=False, on_epoch=lambda record: ends.append(time.process_time()))
    epoch = float(np.diff(ends)[2:].min())
    said(f"training, {name}", epoch, sum(len(frame.atoms) for frame in frames))
    print(f"    {ends[-1] - ends[0] - EPOCHS * epoch:.0f} s besides, of which most is compiling", flush=True)


def main() -> None:
    """Print the table."""
    frames = frames_of_crystals()
    crystals = [frame.atoms for frame in frames]
    ice = [jm.ice_ih(molecules=32, seed=seed) for seed in range(2)]
    print(f"{len(crystals)} crystals of {np.mean([len(a) for a in crystals]):.1f} atoms")
    for name, structures in (("ice", ice), ("crystals", crystals)):
        time_of_labels(f"CHGNet, {name}", jm.load("chgnet:gga"), structures)
    for message_l in (0, 1):
        model = jm.Equivariant(channels=CHANNELS, layers=LAYERS, l_max=2, message_l=message_l, cutoff=CUTOFF)
        potential = model.build([1, 8], average_neighbors=30.0)
        name = f"{CHANNELS} channels, message_l {message_l}"
        time_of_labels(f"{name}, ice", potential, ice)
        time_of_training(f"{name}, crystals", model, frames)
    time_of_training("CHGNet, crystals", jm.CHGNetModel(), frames)


if __name__ == "__main__":
    main()
