"""Ensembles by the names that command lines call them by."""

from typing import Any

from jaxmlip.simulation.barostats import NPT, NPTNoseHoover, check_cell_motion
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.ensembles import NVE, NVT, NVTNoseHoover, NVTVelocityRescaling

Number = float | int


def ensemble_of(
    name: str,
    temperature_K: Number,
    pressure_GPa: Number = 0.0,
    cell: str = "isotropic",
    friction_per_ps: Number = 2.0,
    *,
    pressure_time_ps: Number = 1.0,
) -> Ensemble:
    """The ensemble of a name; what it does not have is not looked at.

    Args:
        name: nve, nvt, nvt-nose-hoover, nvt-csvr, npt or npt-nose-hoover.
        temperature_K: K.
        pressure_GPa: of npt and npt-nose-hoover.
        cell: how npt moves the cell: isotropic, orthorhombic or flexible.
        friction_per_ps: of nvt and npt.
        pressure_time_ps: of npt.

    Raises:
        ValueError: for a name that does not exist, or values that the ensemble refuses.
    """
    friction: dict[str, Any] = {"friction_per_ps": friction_per_ps}
    made = {
        "nve": lambda: NVE(temperature_K),
        "nvt": lambda: NVT(temperature_K, **friction),
        "nvt-nose-hoover": lambda: NVTNoseHoover(temperature_K),
        "nvt-csvr": lambda: NVTVelocityRescaling(temperature_K),
        "npt": lambda: NPT(
            temperature_K, pressure_GPa, check_cell_motion(cell), pressure_time_ps=pressure_time_ps, **friction
        ),
        "npt-nose-hoover": lambda: NPTNoseHoover(temperature_K, pressure_GPa),
    }
    if name not in made:
        raise ValueError(f"The ensemble is one of {', '.join(made)}, not {name!r}.")
    return made[name]()
