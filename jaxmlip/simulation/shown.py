"""What the progress bar of a simulation tells."""

import numpy as np
from ase import Atoms

from jaxmlip.simulation.recording import Sample
from jaxmlip.units import G_PER_CM3

BAR = "{l_bar}{bar}| {n:.3f}/{total:.3f} ps [{elapsed}<{remaining}{postfix}]"


class Shown:
    """What the progress bar tells of a run."""

    def __init__(self, starts: list[Atoms], conserves: bool) -> None:
        self._replicas, self._atoms = len(starts), np.array([len(atoms) for atoms in starts])
        self._mass = np.array([atoms.get_masses().sum() for atoms in starts]) if starts[0].pbc.all() else None
        self._conserves = conserves
        self._first: tuple[float, np.ndarray] | None = None

    def text(self, sample: Sample, time_ps: float, speed: float) -> str:
        """Means over the replicas that are sound; the drift is since the first frame that was shown."""
        each = f" ({speed:.3g} each)" if self._replicas > 1 else ""
        parts = [f"{speed * self._replicas:.3g} ns/day{each}", f"{_mean(sample['temperature']):.0f} K"]
        if self._conserves:
            self._first = self._first or (time_ps, sample["conserved"])
            since, energy = self._first
            drift = _mean((sample["conserved"] - energy) / self._atoms) / max(time_ps - since, 1e-9)
            parts.append(f"drift {1000 * drift:.2g} meV/atom/ps")
        if self._mass is not None and "cells" in sample:
            density = self._mass / (G_PER_CM3 * np.abs(np.linalg.det(sample["cells"])))
            parts.append(f"{_mean(density):.3f} g/cm³")
        return ", ".join(parts)


def _mean(values: np.ndarray) -> float:
    sound = values[np.isfinite(values)]
    return float(sound.mean()) if sound.size else float("nan")
