"""What the history of a training says of an epoch, and what its bar shows of it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxmlip.training.metrics import UNITS, Tally, rmse
from jaxmlip.training.objective import TermSums, total
from jaxmlip.training.problem import Record, TrainingProblem, TrainingSettings
from jaxmlip.training.runs import TrainingRun


def record_of(
    run: TrainingRun,
    number: int,
    validation: Tally,
    settings: TrainingSettings,
    rates: Float[np.ndarray, " models"],
    problem: TrainingProblem,
) -> Record:
    """What the history of a model says of the epoch under way.

    Args:
        run: where the training is.
        number: of the model.
        validation: its errors on validation samples.
        settings: of the model.
        rates: learning rates of all models.
        problem: of the model, as its terms are now.
    """
    losses = run.models[number].losses
    stress = {"stress_weight": settings.weights().stress} if problem.terms.stress else {}
    sums: dict[str, TermSums] = validation.sums()
    moments = {"validation_magmom_rmse_muB": rmse(sums, "magmoms")} if problem.terms.magmoms else {}
    names = sorted(sums.keys() - UNITS.keys())
    further = {f"validation_{name}_loss": float(total({name: sums[name]}, {name: 1.0})) for name in names}
    renewals = {} if problem.source is None else {"renewals": run.renewals}
    return {
        "epoch": run.epoch,
        "train_loss": float(np.mean(losses)) if losses else np.nan,
        "validation_loss": float(problem.validated(settings).total(sums)),
        "validation_energy_rmse_meV_atom": rmse(sums, "energy"),
        "validation_force_rmse_meV_A": rmse(sums, "forces"),
        "validation_stress_rmse_GPa": rmse(sums, "stress"),
        "learning_rate": float(rates[number]),
        "wall_s": run.wall_s,
    } | (stress | moments | renewals | further)


def shown(records: Sequence[Record]) -> dict[str, str]:
    """What the progress bar says: the epoch, and the errors that there are labels for, averaged over the models."""
    units = {
        "energy_rmse_meV_atom": "meV/atom",
        "force_rmse_meV_A": "meV/Å",
        "stress_rmse_GPa": "GPa",
        "magmom_rmse_muB": "μB",
    }
    errors = {
        unit: np.mean([record.get(f"validation_{name}", np.nan) for record in records]) for name, unit in units.items()
    }
    shown = {unit: f"{error:.3g}" for unit, error in errors.items() if np.isfinite(error)}
    return {"epoch": str(max(record["epoch"] for record in records))} | shown
