"""Errors of energies, forces, stresses and magnetic moments against reference labels, with errors over frames."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxmlip.describing import plus_minus
from jaxmlip.files import finite
from jaxmlip.systems.dataset import MAGMOMS, Frame, moment_sizes
from jaxmlip.units import GPA

VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))
"""Rows and columns of the six independent components of a stress."""


DASH = "–"
"""Where a table has no number."""


@dataclasses.dataclass(frozen=True)
class ErrorReport:
    """Errors of predicted against reference frames; NaN where there is nothing to compare.

    With e_f = (E_predicted − E_reference) / atoms of frame f: `energy_rmse` = √⟨e²⟩, `energy_mean` = ⟨e⟩,
    `energy_std` = √⟨(e − ⟨e⟩)²⟩ (so that rmse² = mean² + std²) and `energy_max` = max |e|, every frame weighing the
    same. Force errors pool the Cartesian components of all atoms of all frames, stress errors the six independent
    components of all frames: rmse is the root of the average squared difference and max the largest absolute one.

    Every `…_error` is one standard error. Frames are the independent unit; the errors of ⟨e⟩, ⟨e²⟩ and of the ratio
    (Σ squares / Σ components) are those of a sample mean with N − 1, carried to the roots by the delta method. They
    are NaN for a single frame. A maximum has none.

    Attributes:
        frames: frames compared.
        atoms: atoms in these frames.
        energy_frames: frames with an energy in both.
        force_components: force components in both.
        stress_frames: frames with a stress in both; the stress entries are absent from `to_json` if 0.
        force_rms_meV_A: root mean square of the reference's force components, what `force_rmse_meV_A` is small against.
        magmom_atoms: atoms with a magnetic moment in both; the entries of magnetic moments are absent from `to_json` if
            0. Moments are compared by their magnitude, in μB, over all atoms of all frames.
    """

    frames: int
    atoms: int
    energy_frames: int
    force_components: int
    stress_frames: int
    energy_rmse_meV_atom: float
    energy_rmse_meV_atom_error: float
    energy_max_meV_atom: float
    energy_mean_meV_atom: float
    energy_mean_meV_atom_error: float
    energy_std_meV_atom: float
    energy_std_meV_atom_error: float
    force_rmse_meV_A: float
    force_rmse_meV_A_error: float
    force_max_meV_A: float
    stress_rmse_GPa: float
    stress_rmse_GPa_error: float
    stress_max_GPa: float
    force_rms_meV_A: float = math.nan
    magmom_atoms: int = 0
    magmom_rmse_muB: float = math.nan
    magmom_rmse_muB_error: float = math.nan
    magmom_max_muB: float = math.nan

    def __str__(self) -> str:
        """A line for each label that there is: RMSE with its standard error, and what it is small against."""
        lines = [f"{self.frames} frames, {self.atoms} atoms"]
        if self.energy_frames:
            mean = plus_minus(self.energy_mean_meV_atom, self.energy_mean_meV_atom_error)
            rmse = plus_minus(self.energy_rmse_meV_atom, self.energy_rmse_meV_atom_error)
            lines.append(f"energy: RMSE {rmse} meV/atom, mean error {mean} meV/atom")
        if self.force_components:
            rmse = plus_minus(self.force_rmse_meV_A, self.force_rmse_meV_A_error)
            lines.append(f"forces: RMSE {rmse} meV/Å, of forces of {self.force_rms_meV_A:.0f} meV/Å (RMS)")
        if self.stress_frames:
            lines.append(f"stress: RMSE {plus_minus(self.stress_rmse_GPa, self.stress_rmse_GPa_error)} GPa")
        if self.magmom_atoms:
            lines.append(f"magnetic moments: RMSE {plus_minus(self.magmom_rmse_muB, self.magmom_rmse_muB_error)} μB")
        return "\n".join(lines)

    def measured(self, name: str) -> dict[str, float | None]:
        """One quantity as `{"value": …, "error": …}`, None where it is undefined.

        Raises:
            ValueError: if there is no such quantity.
        """
        values = dataclasses.asdict(self)
        if name not in values or name.endswith("_error"):
            known = ", ".join(key for key in values if not key.endswith("_error"))
            raise ValueError(f"There is no {name!r} in an error report; there are {known}.")
        return {"value": finite(values[name]), "error": finite(values.get(f"{name}_error", math.nan))}

    def to_json(self) -> dict[str, int | float | None]:
        """A flat dictionary that JSON can hold: undefined numbers are None; nothing of labels that few files have."""
        absent = [name for name, n in (("stress_", self.stress_frames), ("magmom_", self.magmom_atoms)) if not n]
        return {
            key: finite(value)
            for key, value in dataclasses.asdict(self).items()
            if not any(key.startswith(name) for name in absent)
        }


def as_table(report: ErrorReport) -> str:
    """The report in two columns, for people: value ± standard error; a dash stands for what is undefined."""
    return table_of(report.to_json())


def table_of(entries: Mapping[str, int | float | None]) -> str:
    """The same of what `ErrorReport.to_json` gave."""
    shown = {name: value for name, value in entries.items() if not name.endswith("_error")}
    width = max(map(len, shown))
    return "\n".join(
        f"{name:<{width}}  {_with_error(value, entries.get(f'{name}_error'))}" for name, value in shown.items()
    )


def _with_error(value: float | int | None, error: float | int | None) -> str:
    if value is None:
        return DASH
    return str(value) if isinstance(value, int) else plus_minus(value, math.nan if error is None else error)


def compare(reference: Sequence[Frame], predicted: Sequence[Frame]) -> ErrorReport:
    """Errors of predictions against reference labels of the same structures.

    A NaN on either side marks a label that is absent, and is left out of the averages.

    Args:
        reference: labelled frames.
        predicted: what a potential says of them, in the same order (see `jaxmlip.potentials.evaluation.predict`).

    Raises:
        ValueError: if the two do not hold the same structures, there are none, or a value is infinite.
    """
    if len(reference) != len(predicted):
        raise ValueError(f"There are {len(reference)} reference frames, but {len(predicted)} predicted ones.")
    if not reference:
        raise ValueError("There are no frames to compare.")
    for index, (one, other) in enumerate(zip(reference, predicted, strict=True)):
        _check_pair(index, one, other)
    pairs = list(zip(reference, predicted, strict=True))

    energies = np.array([(p.energy - r.energy) / len(r.atoms) * 1e3 for r, p in pairs])
    energies = energies[~np.isnan(energies)]
    mean, mean_error = _ratio(energies, np.ones_like(energies))
    deviations = (energies - mean) ** 2
    energy_rmse, energy_rmse_error = _root(*_ratio(energies**2, np.ones_like(energies)))
    energy_std, energy_std_error = _root(*_ratio(deviations, np.ones_like(energies)))
    force_rmse, force_rmse_error, force_max, force_counts = _pooled(
        [(p.forces - r.forces).ravel() * 1e3 for r, p in pairs]
    )
    stress_rmse, stress_rmse_error, stress_max, stress_counts = _pooled(
        [(p.stress - r.stress)[VOIGT] / GPA for r, p in pairs]
    )
    magmom_rmse, magmom_rmse_error, magmom_max, magmom_counts = _pooled(
        [own_moments(p) - own_moments(r) for r, p in pairs]
    )
    return ErrorReport(
        frames=len(pairs),
        atoms=sum(len(r.atoms) for r, _ in pairs),
        energy_frames=len(energies),
        force_components=int(force_counts.sum()),
        stress_frames=int((stress_counts > 0).sum()),
        energy_rmse_meV_atom=energy_rmse,
        energy_rmse_meV_atom_error=energy_rmse_error,
        energy_max_meV_atom=float(np.abs(energies).max(initial=0.0)) if len(energies) else math.nan,
        energy_mean_meV_atom=mean,
        energy_mean_meV_atom_error=mean_error,
        energy_std_meV_atom=energy_std,
        energy_std_meV_atom_error=energy_std_error,
        force_rmse_meV_A=force_rmse,
        force_rmse_meV_A_error=force_rmse_error,
        force_max_meV_A=force_max,
        stress_rmse_GPa=stress_rmse,
        stress_rmse_GPa_error=stress_rmse_error,
        stress_max_GPa=stress_max,
        force_rms_meV_A=_pooled([(r.forces + 0.0 * p.forces).ravel() * 1e3 for r, p in pairs])[0],
        magmom_atoms=int(magmom_counts.sum()),
        magmom_rmse_muB=magmom_rmse,
        magmom_rmse_muB_error=magmom_rmse_error,
        magmom_max_muB=magmom_max,
    )


def own_moments(frame: Frame) -> Float[np.ndarray, " atoms"]:
    """Magnitudes of magnetic moments, μB; NaN also where they are not those of the level that the energies are of."""
    return np.full(len(frame.atoms), np.nan) if MAGMOMS in frame.carried else moment_sizes(frame)


def _check_pair(index: int, reference: Frame, predicted: Frame) -> None:
    one, other = reference.atoms, predicted.atoms
    if len(one) != len(other) or (one.numbers != other.numbers).any():
        raise ValueError(
            f"Frame {index} is {one.symbols} in the reference, but {other.symbols} in the prediction; compare frames "
            "of the same structures in the same order."
        )
    moved = np.abs(one.positions - other.positions).max()
    if not moved < 1e-3:
        raise ValueError(
            f"Frame {index} ({one.symbols}): an atom is {moved:.3g} Å elsewhere in the prediction than in the "
            "reference; compare frames of the same structures in the same order."
        )
    for side, frame in {"reference": reference, "prediction": predicted}.items():
        labels = {"energy": frame.energy, "forces": frame.forces, "stress": frame.stress, "magmoms": own_moments(frame)}
        for what, values in labels.items():
            if np.isinf(values).any():
                raise ValueError(f"Frame {index} ({one.symbols}): the {what} of the {side} is infinite.")


def _pooled(differences: list[np.ndarray]) -> tuple[float, float, float, Float[np.ndarray, " frames"]]:
    """Root mean square over all components, its standard error, the largest, and the components of each frame."""
    counts = np.array([np.isfinite(d).sum() for d in differences], dtype=np.float64)
    squares = np.array([np.nansum(d**2) for d in differences])
    labelled = counts > 0
    rmse, error = _root(*_ratio(squares[labelled], counts[labelled]))
    largest = max(
        (float(np.nanmax(np.abs(d))) for d, n in zip(differences, counts, strict=True) if n), default=math.nan
    )
    return rmse, error, largest, counts


def _ratio(sums: Float[np.ndarray, " n"], counts: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Σ sums / Σ counts and its standard error over the n frames (Cochran, Sampling Techniques, eq. 6.13)."""
    n = len(sums)
    if n == 0:
        return math.nan, math.nan
    ratio = float(sums.sum() / counts.sum())
    if n == 1:
        return ratio, math.nan
    residual = (sums - ratio * counts) / counts.mean()
    return ratio, float(np.sqrt((residual**2).sum() / (n * (n - 1))))


def _root(square: float, error: float) -> tuple[float, float]:
    """Square root of a mean square, its standard error by the delta method; 0 ± 0 if every difference is 0."""
    root = math.sqrt(square) if square >= 0 else math.nan
    return root, error / (2.0 * root) if root > 0 else (error if root == 0 else math.nan)
