"""Which closed-form strategy to trust with energies alone: what each says of its own force errors in bulk ice.

For the strategies that learn from energies in closed form, on the labels of `maceoff.yaml`: the logarithm of the
evidence, the error of a left-out training energy, and the standard deviation of the forces on bulk frames over eight
potentials drawn from the posterior. No force and no energy of the bulk frames is looked at. Usage, after a run of the
study has left a foundation:

    uv run python experiments/clusters_to_bulk/predicted_errors.py runs/maceoff/potentials/foundation.jaxmlip
"""

import argparse
import os
from pathlib import Path

import numpy as np

from jaxmlip.potentials.files import load_potential
from jaxmlip.systems.dataset import Frame, read_frames
from jaxmlip.training.strategies.closed_form import spread
from jaxmlip.training.strategies.pair_difference import PairDifference
from jaxmlip.training.strategies.tangent import TangentKernel

SIZES = (50, 100, 200, 400)
MEMBERS = 8


def main() -> None:
    """Print one line for each strategy and size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("foundation", type=Path, help="potentials/foundation.jaxmlip of a run of maceoff.yaml")
    options = parser.parse_args()
    if "JAXMLIP_DATA" not in os.environ:
        parser.error("JAXMLIP_DATA is not set; export the folder that has ice_maceoff/ in it.")
    folder = Path(os.environ["JAXMLIP_DATA"]) / "ice_maceoff"

    def frames(file: str, level: str, index: str) -> list[Frame]:
        return read_frames(folder / file, energy_key=f"{level}_energy", forces_key=f"{level}_forces", index=index)

    foundation = load_potential(str(options.foundation))
    low = frames("clusters_5.0A.extxyz", "mp0", f":{max(SIZES)}")
    bulk = frames("bulk.extxyz", "mp0", ":2")
    print("| N | strategy | log evidence | left-out energy, meV/√atom | predicted force error in the bulk, meV/Å |")
    print("|---|---|---|---|---|")
    for size in SIZES:
        high = frames("clusters_5.0A.extxyz", "off23", f":{size}")
        for strategy in (PairDifference(), TangentKernel()):
            problem = strategy.problem(foundation, high, validation=high, low=low, labels="energy")
            posterior = strategy.posterior(problem)
            left_out = np.sqrt(np.mean(posterior.linear.left_out() ** 2 / posterior.linear.sizes))
            ensemble = posterior.ensemble(MEMBERS)
            deviations = np.concatenate([spread(ensemble, frame.atoms)[1] for frame in bulk])
            predicted = np.sqrt(np.mean(deviations**2))
            evidence = posterior.linear.log_evidence
            print(f"| {size} | {strategy.name} | {evidence:.0f} | {1e3 * left_out:.1f} | {1e3 * predicted:.0f} |")


if __name__ == "__main__":
    main()
