"""The conformance test of ensembles passes ours, and names the law that another breaks."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import pytest

from jaxmlip.simulation.barostats import NPT, CellRescaling, NPTNoseHoover
from jaxmlip.simulation.dynamics import Dynamics, Ensemble
from jaxmlip.simulation.ensembles import (
    NVE,
    NVT,
    Langevin,
    NoseHoover,
    NVTNoseHoover,
    NVTVelocityRescaling,
    VelocityRescaling,
)
from jaxmlip.simulation.schedules import Ramp
from jaxmlip.testing import check_ensemble

OURS: dict[str, Ensemble] = {
    "NVT": NVT(300.0, friction_per_ps=20.0),
    "NPTNoseHoover": NPTNoseHoover(300.0, 0.5, 0.05, 0.1),
    "NVE": NVE(300.0),
    "NVTNoseHoover": NVTNoseHoover(300.0, 0.05),
    "NVTVelocityRescaling": NVTVelocityRescaling(300.0, 0.05),
    "NPT": NPT(300.0, 0.5, pressure_time_ps=0.1, friction_per_ps=20.0),
    "NPT, flexible": NPT(300.0, 0.5, "flexible", pressure_time_ps=0.1, friction_per_ps=20.0),
}


@pytest.mark.parametrize("name", ["NVT", *(pytest.param(name, marks=pytest.mark.slow) for name in [*OURS][1:])])
def test_ours_conform(name: str) -> None:
    check_ensemble(OURS[name])


class TooHot(Langevin):
    """Noise of another temperature."""

    def move(self, state: Any, dt: Any) -> Any:
        return Langevin(1.3 * self.kT, self.friction).move(state, dt)


class Damped(Langevin):
    """By so much a step, however short it is."""

    def finish(self, state: Any, forces: Any, dt: Any) -> Any:
        state = super().finish(state, forces, dt)
        return state.set(momentum=0.999 * state.momentum)


class Alike(Langevin):
    """Random numbers that do not come from the key."""

    def init(self, key: Any, positions: Any, masses: Any, cell: Any) -> Any:
        return super().init(jax.random.key(0), positions, masses, cell)


class Adrift(Langevin):
    """Padding counts for the mean."""

    def finish(self, state: Any, forces: Any, dt: Any) -> Any:
        state = super().finish(state, forces, dt)
        return state.set(momentum=state.momentum - dt * state.momentum.mean(0))


class Leaking(VelocityRescaling):
    """What the thermostat gives has the wrong sign."""

    def reservoir(self, state: Any) -> Any:
        return -state.given


class Secret(CellRescaling):
    """Says nothing of its cell."""

    moves_cell: ClassVar[bool] = False


class Stiff(CellRescaling):
    """The cell is said to move."""

    def _strain(self, key: Any, state: Any, dt: Any) -> Any:
        return jnp.zeros((3, 3))


class Uncounted(NoseHoover):
    """Temperature with too many degrees of freedom."""

    @staticmethod
    def degrees_of_freedom(atoms: Any, held: Any = False) -> Any:
        del held
        return 4 * atoms


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "like", "law"),
    [
        (Damped, "NVT", "a step of zero length changes nothing: .momentum"),
        (Alike, "NVT", "other seeds give other trajectories"),
        pytest.param(TooHot, "NVT", "kinetic temperature is that of kT: the ratio is 1.3", marks=SLOW),
        pytest.param(Leaking, "NVTVelocityRescaling", "total energy and reservoir are conserved", marks=SLOW),
        pytest.param(Adrift, "NVT", "padding changes nothing for the other atoms", marks=SLOW),
        pytest.param(Secret, "NPT", "the cell moves only where moves_cell", marks=SLOW),
        pytest.param(Stiff, "NPT", "the cell moves only where moves_cell", marks=SLOW),
        pytest.param(Uncounted, "NVTNoseHoover", "energy of harmonic wells is that of kT", marks=SLOW),
    ],
)
def test_a_broken_law_is_named(kind: type[Dynamics], like: str, law: str) -> None:
    described: Any = OURS[like]

    @dataclasses.dataclass(frozen=True)
    class Broken(type(described)):
        integrator: ClassVar[type[Dynamics]] = kind

        def dynamics(self, replicas: int) -> Dynamics:
            numbers = super().dynamics(replicas)
            names = [field.name for field in dataclasses.fields(numbers) if field.name != "node_class"]
            return kind(**{name: getattr(numbers, name) for name in names})

    values = {field.name: getattr(described, field.name) for field in dataclasses.fields(described)}
    with pytest.raises(AssertionError, match=law):
        check_ensemble(Broken(**values))


def test_another_dynamics_than_it_says() -> None:
    class Promised(NVT):
        integrator: ClassVar[type[Dynamics]] = NoseHoover

    with pytest.raises(AssertionError, match="dynamics of Promised is a Langevin, and its integrator says NoseHoover"):
        check_ensemble(Promised(300.0))


def test_refuses_what_it_cannot_check() -> None:
    with pytest.raises(ValueError, match="do not change in time"):
        check_ensemble(NVT(Ramp(300.0, 200.0, time_ps=1.0)))
    with pytest.raises(ValueError, match="check the ensemble with shorter ones"):
        check_ensemble(NVT(300.0, friction_per_ps=0.01))
