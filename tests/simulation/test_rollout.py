"""Rollouts: the trajectories of `simulate`, and their derivatives against finite differences and exact results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms
from conftest import DT, fcc
from simple_potentials import REDUCED_K, LennardJones, SmoothLennardJones, Wells, lennard_jones

from jaxmlip.observables.structure import RDF
from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.files import load_potential
from jaxmlip.potentials.potential import Potential, stack
from jaxmlip.simulation.barostats import NPT, NPTNoseHoover
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.ensembles import NVE, NVT, NVTNoseHoover, NVTVelocityRescaling
from jaxmlip.simulation.rollout import RolloutCapacity, SimulationState, checkpointed_scan, prepare_rollout, rollout
from jaxmlip.simulation.schedules import Ramp
from jaxmlip.simulation.simulate import simulate
from jaxmlip.systems.capacity import Capacity
from jaxmlip.systems.ice import ice_ih

STUDENT = Path(__file__).parent / "data" / "ice_student.jaxmlip"

COLD = 0.3 * REDUCED_K
"""K; a Lennard-Jones crystal bears it."""


def in_double(potential: Any) -> Any:
    return potential.replace(params=jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), potential.params))


def rolled(
    potential: Potential, ensemble: Ensemble, begin: tuple[SimulationState, RolloutCapacity], **how: Any
) -> tuple:
    """One compiled rollout."""
    state, capacity = begin
    return jax.jit(lambda p, s: rollout(p, ensemble, s, capacity, **how))(potential, state)


ENSEMBLES = {
    "NVE": NVE(COLD),
    "NVT, each replica its own": NVT([COLD, 0.5 * COLD]),
    "NVT, a ramp": NVT(Ramp(COLD, 0.5 * COLD, time_ps=0.5)),
    "Nosé–Hoover": NVTNoseHoover(COLD),
    "velocity rescaling": NVTVelocityRescaling(COLD),
    "NPT, isotropic": NPT(COLD, 1.0, compressibility_per_GPa=1e-3),
    "NPT, flexible": NPT(COLD, 1.0, "flexible", compressibility_per_GPa=1e-3),
    "Martyna–Tobias–Klein": NPTNoseHoover(COLD, 1.0),
}


ALWAYS = ("NVT, a ramp", "NPT, flexible")
"""Numbers that change in time, and a cell that moves; whatever the ensemble, a rollout is made of its steps."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in ALWAYS)) for n in ENSEMBLES])
def test_the_trajectory_is_that_of_simulate(name: str, x64: None) -> None:
    """Same seed, same frames, to rounding; the lists are others."""
    potential, ensemble = in_double(lennard_jones()), ENSEMBLES[name]
    how = {"timestep_fs": DT, "seed": 3, "skin": 0.8}
    run = simulate(potential, fcc(2), ensemble, steps=60, sample_every_fs=20 * DT, replicas=2, progress=False, **how)
    begin = prepare_rollout(potential, fcc(2), ensemble, replicas=2, steps_per_list=7, **how)
    state, samples, valid = rolled(potential, ensemble, begin, steps=60, every=20, timestep_fs=DT)
    assert bool(valid)
    assert int(state.step) == 60
    for mine, theirs in ((samples["positions"], run.positions), (samples["cells"], run.frame_cells)):
        np.testing.assert_allclose(np.swapaxes(mine, 0, 1), theirs, rtol=0, atol=2e-6)  # frames are stored in single
    np.testing.assert_allclose(samples["energy"].T, run.potential_energy, rtol=1e-10)


def test_rollouts_go_on_where_others_end(x64: None) -> None:
    potential, ensemble = in_double(lennard_jones()), NVT(COLD)
    state, capacity = prepare_rollout(potential, fcc(2), ensemble, timestep_fs=DT, skin=0.8, steps_per_list=5)
    go = jax.jit(lambda s: rollout(potential, ensemble, s, capacity, steps=10, every=5, timestep_fs=DT))
    middle, first, _ = go(state)
    _, second, _ = go(middle)
    _, whole, _ = rolled(potential, ensemble, (state, capacity), steps=20, every=5, timestep_fs=DT)
    both = np.concatenate([first["positions"], second["positions"]])
    np.testing.assert_allclose(both, whole["positions"], rtol=0, atol=1e-10)


def wells(stiffness: Any) -> tuple[Wells, Atoms]:
    """64 carbon atoms, each in its own well, on a lattice about the origin."""
    centres = 7.0 * (np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(-1, 3) - 1.5)
    return Wells({"k": stiffness, "centres": jnp.asarray(centres, float)}), Atoms("C64", centres)


@pytest.mark.slow
@pytest.mark.physics
def test_derivative_of_the_mean_square_displacement_in_wells(x64: None, agrees: Callable) -> None:
    """d⟨x²⟩/dk = −kT/k² through BAOAB with given noise, and finite differences with the same noise to 1e-8."""
    stiffness, kT = 2.0, 0.05
    potential, atoms = wells(jnp.asarray(stiffness))
    ensemble = NVT(kT * REDUCED_K, friction_per_ps=80.0)
    state, capacity = prepare_rollout(
        potential, atoms, ensemble, seed=1, timestep_fs=5.0, skin=5.0, steps_per_list=1000
    )

    @jax.jit
    def squares(k: Any) -> Any:
        """Mean over time of the squared displacement of each atom and direction."""
        moved = potential.replace(params=potential.params | {"k": k})
        _, samples, valid = rollout(moved, ensemble, state, capacity, steps=2400, every=6, timestep_fs=5.0)
        away = samples["positions"][100:, 0] - potential.params["centres"]
        return jnp.where(valid, (away**2).mean(0).reshape(-1), jnp.nan)

    k = jnp.asarray(stiffness)
    slope = jax.jit(jax.jacfwd(squares))(k)
    reverse = jax.jit(jax.grad(lambda k: squares(k).mean()))(k)
    np.testing.assert_allclose(reverse, slope.mean(), rtol=1e-10)
    step = 1e-4
    up, down, far_up, far_down = (squares(k + n * step).mean() for n in (1, -1, 2, -2))
    np.testing.assert_allclose(reverse, (8 * (up - down) - (far_up - far_down)) / (12 * step), rtol=1e-8)
    error = slope.std() / np.sqrt(slope.size)
    agrees("d⟨x²⟩/dk in harmonic wells, through dynamics (Å²/(eV/Å²))", slope.mean(), error, -kT / stiffness**2)
    of_values = squares(k)
    agrees("⟨x²⟩ in harmonic wells, of a rollout (Å²)", of_values.mean(), of_values.std() / 192**0.5, kT / stiffness)


def test_derivatives_by_everything_that_may_vary(x64: None) -> None:
    """32 Lennard-Jones atoms, 80 steps: by potential, temperature and start, against finite differences."""
    potential = SmoothLennardJones({name: jnp.ones(()) for name in ("epsilon", "sigma")})
    state, capacity = prepare_rollout(potential, fcc(2), NVT(COLD), seed=2, timestep_fs=DT, skin=0.8, steps_per_list=10)

    @jax.jit
    def value(epsilon: Any, sigma: Any, kelvin: Any, momentum: Any) -> Any:
        changed = SmoothLennardJones({"epsilon": epsilon, "sigma": sigma})
        begin = state.replace(replicas=state.replicas.set(momentum=momentum * state.replicas.momentum))
        how = {"steps": 80, "every": 20, "timestep_fs": DT}
        _, samples, valid = rollout(changed, NVT(kelvin), begin, capacity, **how)
        return jnp.where(valid, samples["energy"].mean() + (samples["positions"] ** 2).mean(), jnp.nan)

    point = tuple(jnp.asarray(x) for x in (1.0, 1.0, COLD, 1.0))
    slopes = jax.jit(jax.grad(value, argnums=(0, 1, 2, 3)))(*point)
    forward = jax.jit(lambda: jax.jvp(value, point, tuple(jnp.ones(()) for _ in point))[1])()
    np.testing.assert_allclose(forward, sum(slopes), rtol=1e-9)
    for place, slope in enumerate(slopes):
        step = 1e-5 * float(point[place])

        def shifted(times: int, place: int = place, step: float = step) -> Any:
            return value(*[x + times * step * (n == place) for n, x in enumerate(point)])

        numeric = (8 * (shifted(1) - shifted(-1)) - (shifted(2) - shifted(-2))) / (12 * step)
        np.testing.assert_allclose(slope, numeric, rtol=1e-5)


SMALL = Equivariant(channels=2, l_max=1, message_l=1, correlation=2, cutoff=3.5, radial_mlp=(4,), readout_hidden=2)


@pytest.mark.parametrize(
    ("student", "dtype", "tolerance"),
    [
        ("small", np.float64, 1e-6),
        ("of ice", np.float64, 1e-6),
        ("of ice", np.float32, 1e-3),
    ],
)
@pytest.mark.slow
def test_derivative_by_all_parameters_of_a_student(student: str, dtype: type, tolerance: float) -> None:
    """50 steps of NVE, along a random direction of all parameters, against finite differences in double precision."""
    with jax.enable_x64(True):
        made = SMALL.build([1, 8], average_neighbors=9.0, scale=0.1, seed=1) if student == "small" else None
        double = in_double(made or load_potential(STUDENT))
        rng = np.random.default_rng(0)
        along = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * np.std(leaf)), double.params)
        ice, how = ice_ih(molecules=16, seed=0), {"timestep_fs": 0.5, "skin": 1.0, "steps_per_list": 10}
        state, capacity = prepare_rollout(double, ice, NVE(150.0), **how)

    def value(potential: Any, state: SimulationState) -> Any:
        _, samples, valid = rollout(potential, NVE(150.0), state, capacity, steps=50, every=25)
        moved = ((samples["positions"][-1] - state.positions) ** 2).mean()
        return jnp.where(valid, samples["energy"].mean() + 10.0 * moved, jnp.nan)

    with jax.enable_x64(dtype is np.float64):
        cast = lambda leaf: jnp.asarray(leaf, dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf  # noqa: E731
        mine, begin, tangent = jax.tree.map(cast, (double, state, along))
        slopes = jax.jit(jax.grad(lambda params: value(mine.replace(params=params), begin)))(mine.params)
        pairs = zip(jax.tree.leaves(slopes), jax.tree.leaves(tangent), strict=True)
        slope = float(sum(jnp.vdot(a, b) for a, b in pairs))
    with jax.enable_x64(True):
        moved_by = lambda t: double.replace(params=jax.tree.map(lambda p, d: p + t * d, double.params, along))  # noqa: E731
        compiled = jax.jit(lambda t: value(moved_by(t), state))
        step = 1e-5
        up, down, far_up, far_down = (float(compiled(n * step)) for n in (1, -1, 2, -2))
    np.testing.assert_allclose(slope, (8 * (up - down) - (far_up - far_down)) / (12 * step), rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs", "students"])
def test_stacked_potentials_are_mapped(kind: str, x64: None) -> None:
    """value_and_grad of a rollout, mapped over four potentials, equals four single ones."""
    if kind == "pairs":
        parameters = [{"epsilon": jnp.asarray(1.0 + 0.02 * n), "sigma": jnp.asarray(1.0 - 0.002 * n)} for n in range(4)]
        potentials: list[Potential] = [LennardJones(each) for each in parameters]
        rdf, atoms, how = RDF("Ar", "Ar", r_max=1.5, smearing=0.05), fcc(2), {"timestep_fs": DT}
        ensemble, lists = NVT(COLD), {"skin": 0.8, "steps_per_list": 5}
    else:
        potentials = [in_double(SMALL.build([1, 8], average_neighbors=9.0, scale=0.1, seed=n)) for n in range(4)]
        rdf, atoms, how = RDF("O", "O", r_max=3.0, smearing=0.05), ice_ih(molecules=16, seed=0), {"timestep_fs": 0.5}
        ensemble, lists = NVT(150.0), {"skin": 1.0, "steps_per_list": 10}
    state, capacity = prepare_rollout(potentials[0], atoms, ensemble, seed=2, **how, **lists)

    def value(params: Any) -> Any:
        mine = potentials[0].replace(params=params)
        _, samples, valid = rollout(mine, ensemble, state, capacity, steps=20, every=10, observe=[rdf], **how)
        return jnp.where(valid, samples["energy"].mean() + samples[rdf.name].sum(), jnp.nan)

    single, both = jax.jit(jax.value_and_grad(value)), jax.jit(jax.vmap(jax.value_and_grad(value)))
    mapped = both(stack(potentials).params)
    for place, potential in enumerate(potentials):
        here = jax.tree.map(lambda leaf, place=place: leaf[place], mapped)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), here, single(potential.params)
        )


def test_what_is_not_valid_is_told(x64: None) -> None:
    """Too thin a skin for the life of a list, and lists without room."""
    potential, ensemble = in_double(lennard_jones()), NVT(COLD)
    how = {"timestep_fs": DT, "seed": 2}
    thin = prepare_rollout(potential, fcc(2), ensemble, skin=0.01, steps_per_list=40, **how)
    assert not bool(rolled(potential, ensemble, thin, steps=40, every=40, timestep_fs=DT)[2])
    state, capacity = prepare_rollout(potential, fcc(2), ensemble, skin=0.8, steps_per_list=5, **how)
    small = Capacity(capacity.lists.search, 8, 8, 0)
    tight = RolloutCapacity(small, 0.8, 5, capacity.numbers, capacity.heights)
    assert not bool(rolled(potential, ensemble, (state, tight), steps=5, every=5, timestep_fs=DT)[2])
    assert bool(rolled(potential, ensemble, (state, capacity), steps=5, every=5, timestep_fs=DT)[2])


def test_refusals() -> None:
    state, capacity = prepare_rollout(lennard_jones(), fcc(2), NVT(COLD), timestep_fs=DT, skin=0.8)
    with pytest.raises(ValueError, match="multiple of every=7"):
        rollout(lennard_jones(), NVT(COLD), state, capacity, steps=10, every=7)
    with pytest.raises(ValueError, match=r"Structure 1 \(Ar31.*differs from structure 0 \(Ar32"):
        prepare_rollout(lennard_jones(), [fcc(2), fcc(2)[:-1]], NVT(COLD))
    held = fcc(2)
    held.set_constraint(FixAtoms([0]))
    with pytest.raises(ValueError, match="moves all atoms"):
        prepare_rollout(lennard_jones(), held, NVT(COLD), timestep_fs=DT, skin=0.8)
    with pytest.raises(ValueError, match="1 step or more"):
        prepare_rollout(lennard_jones(), fcc(2), NVT(COLD), steps_per_list=0)


@pytest.mark.slow
def test_memory_of_a_long_rollout() -> None:
    """Reverse mode through 1,024 steps of 96 atoms and 64 channels, by all parameters: compiled, not run."""
    student = Equivariant(channels=64).build([1, 8], average_neighbors=40.0)
    state, capacity = prepare_rollout(student, ice_ih(molecules=32, seed=0), NVE(250.0), steps_per_list=8)

    def value(params: Any) -> Any:
        moved = student.replace(params=params)
        return rollout(moved, NVE(250.0), state, capacity, steps=1024, every=64)[1]["energy"].mean()

    analysis: Any = jax.jit(jax.grad(value)).lower(student.params).compile().memory_analysis()
    assert analysis.temp_size_in_bytes <= 512 * 2**20, f"{analysis.temp_size_in_bytes / 2**20:.0f} MiB"


@pytest.mark.parametrize("length", [1, 2, 7, 12])
def test_checkpointed_scan_is_a_scan(length: int) -> None:
    body = lambda carry, _: (carry * 1.1 + 1.0, carry)  # noqa: E731
    for mine, theirs in zip(
        checkpointed_scan(body, jnp.ones(()), length), jax.lax.scan(body, jnp.ones(()), length=length), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)
