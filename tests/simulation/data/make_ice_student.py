"""Make the potential that tests of dynamics simulate ice with: ice_student.jaxmlip, beside this file.

    JAXMLIP_DATA=FOLDER uv run python tests/simulation/data/make_ice_student.py

It is small, so that tests are fast, and learns MACE-MP-0's energies and forces of 10 bulk frames and 150 clusters.
"""

import os
from pathlib import Path
from typing import Any

import jaxmlip as jm
from jaxmlip.training.distill import distillation_problem

HERE = Path(__file__).parent
KEYS: dict[str, Any] = {"energy_key": "mp0_energy", "forces_key": "mp0_forces"}


def main() -> None:
    """Train and save it, and say how good it is."""
    data = Path(os.environ["JAXMLIP_DATA"]) / "ice_maceoff"
    bulk = jm.read_frames(data / "bulk.extxyz", **KEYS)
    clusters = jm.read_frames(data / "clusters_5.0A.extxyz", index=":150", **KEYS)
    settings = jm.TrainingSettings(epochs=24, validation_every=6, batch_size=2, learning_rate=0.01, energy_weight=1)
    model = jm.Equivariant(
        channels=16, l_max=2, message_l=0, correlation=2, layers=2, cutoff=4.5, radial_mlp=(16, 16), repulsion=True
    )
    problem = distillation_problem(model, bulk[:10] + clusters, bulk[10:12], settings=settings)
    student = jm.train(problem, settings).potential
    print(jm.compare(bulk[12:], jm.label([frame.atoms for frame in bulk[12:]], student, progress=False)))
    jm.save(student, HERE / "ice_student.jaxmlip")


if __name__ == "__main__":
    main()
