"""What a simulation is asked for, and whether it makes sense."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
from ase import Atoms

from jaxmlip.observables.observable import Observable
from jaxmlip.potentials.checks import check_concrete, check_one
from jaxmlip.potentials.potential import Potential, check_species
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.schedules import Number
from jaxmlip.systems.checks import check_start
from jaxmlip.systems.constraints import fixed_atoms


@dataclasses.dataclass(frozen=True)
class Options:
    """How to simulate; see `simulate`, whose defaults these are."""

    time_ps: Number | None = None
    steps: int | None = None
    timestep_fs: Number = 0.5
    replicas: int | None = None
    seed: int = 0
    sample_every_fs: Number = 10.0
    skin: Number = 0.5
    on_failure: str = "raise"
    watch_bonds: bool = True
    observables: Sequence[Observable] = ()
    against: Potential | None = None
    observe_every_fs: Number | None = None
    keep_velocities: bool = False
    devices: int | None = None
    tables: Literal["auto"] | bool = "auto"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was asked for, once it is checked.

    Attributes:
        starts: one structure for each replica, of all processes.
        fixed: [atoms] of each, which atoms are held.
        frames: how many there are to be.
        every: steps between them.
        stride: steps between observations; None if nothing is to be observed.
    """

    starts: list[Atoms]
    fixed: list[np.ndarray]
    frames: int
    every: int
    stride: int | None

    @property
    def any_fixed(self) -> bool:
        """Whether any atom is held."""
        return any(map(np.any, self.fixed))


def checked(
    potentials: Sequence[Potential],
    structure: Atoms | Sequence[Atoms],
    ensemble: Ensemble,
    options: Options,
    alike: bool,
) -> Plan:
    """What `make_session` was given, checked before anything expensive starts; see there.

    Raises:
        ValueError: see `simulate`.
    """
    if not potentials:
        raise ValueError("There are no potentials to simulate.")
    check_concrete((potentials, vars(ensemble), vars(options)), "simulate")
    for potential in potentials:
        check_one(potential, "simulate", "give a list of potentials")
    if options.against is not None:
        check_one(options.against, "against")
    starts = _checked_starts(potentials[0], structure, options.replicas, alike)
    total, every = _checked_steps(options.time_ps, options.steps, options.timestep_fs, options.sample_every_fs)
    if not 0 < options.skin < 10:
        raise ValueError(f"The skin must lie between 0 and 10 Å, not {options.skin!r}.")
    if options.seed != int(options.seed) or not 0 <= options.seed < 2**63:
        raise ValueError(f"A seed is a non-negative integer below 2⁶³, not {options.seed!r}.")
    if options.on_failure not in ("raise", "mark"):
        raise ValueError(f'on_failure is "raise" or "mark", not {options.on_failure!r}.')
    if options.tables not in ("auto", True, False):
        raise ValueError(f'tables is "auto", True or False, not {options.tables!r}.')
    if ensemble.moves_cell and not starts[0].pbc.all():
        raise ValueError(
            f"{type(ensemble).__name__} needs a cell that is periodic in all three directions, not pbc "
            f"{starts[0].pbc.tolist()}; put the atoms into a cell, or keep the volume constant."
        )
    _check_known(potentials[0], starts, ensemble, options)
    fixed = _checked_fixed(starts, ensemble)
    stride = None
    if options.observables or options.against is not None or options.observe_every_fs is not None:
        stride = _checked_stride(every, options.timestep_fs, options.observe_every_fs)
    return Plan(starts, fixed, total // every, every, stride)


def _check_known(potential: Potential, starts: list[Atoms], ensemble: Ensemble, options: Options) -> None:
    """Whether the potentials can say of the starts what they will be asked for; ValueError if not."""
    stress = ensemble.moves_cell or any(each.needs_stress for each in options.observables)
    for atoms in {id(atoms): atoms for atoms in starts}.values():
        potential.check(atoms, stress=stress)
        if options.against is not None:
            options.against.check(atoms)


def _checked_stride(every: int, timestep_fs: Number, observe_every_fs: Number | None) -> int:
    """Steps between observations: of the whole fractions of `every`, the nearest to what was asked for."""
    if observe_every_fs is None:
        return every
    if not 0 < observe_every_fs <= every * timestep_fs * 1.001:
        raise ValueError(
            f"observe_every_fs must be positive and at most the {every * timestep_fs:g} fs between frames, not "
            f"{observe_every_fs!r}."
        )
    wanted = observe_every_fs / timestep_fs
    return min((n for n in range(1, every + 1) if every % n == 0), key=lambda n: abs(n - wanted))


def _checked_starts(
    potential: Potential, structure: Atoms | Sequence[Atoms], replicas: int | None, alike: bool
) -> list[Atoms]:
    """One sound start per replica; ValueError says what is wrong."""
    if isinstance(structure, Atoms):
        count = 1 if replicas is None else replicas
        if count < 1:
            raise ValueError(f"A simulation needs at least one replica, not {count}.")
        starts = [structure] * count
    else:
        starts = list(structure)
        if not starts:
            raise ValueError("No structure was given to start from.")
        if replicas is not None and replicas != len(starts):
            raise ValueError(f"{replicas} replicas were asked for, but {len(starts)} structures were given.")
    different: dict[int, tuple[int, Atoms]] = {}
    for index, atoms in enumerate(starts):
        different.setdefault(id(atoms), (index, atoms))
    for index, atoms in different.values():
        try:
            check_start(atoms)
        except ValueError as error:
            raise ValueError(f"Structure {index}: {error}" if len(different) > 1 else str(error)) from None
        check_species(potential, atoms.numbers)
        same_atoms = np.array_equal(atoms.numbers, starts[0].numbers) or not alike
        if not same_atoms or not np.array_equal(atoms.pbc, starts[0].pbc):
            raise ValueError(
                f"Structure {index} ({atoms.symbols}, pbc {atoms.pbc.tolist()}) differs from structure 0 "
                f"({starts[0].symbols}, pbc {starts[0].pbc.tolist()}): replicas need the same atoms in the same order "
                "and the same periodic directions; sort the atoms."
            )
    return starts


def _checked_fixed(starts: list[Atoms], ensemble: Ensemble) -> list[np.ndarray]:
    """Which atoms of each replica are held; ValueError if they cannot be."""
    found = {id(atoms): fixed_atoms(atoms) for atoms in starts}
    fixed, kind = [found[id(atoms)] for atoms in starts], type(ensemble).__name__
    for index, mask in enumerate(fixed):
        if mask.all():
            raise ValueError(f"All atoms of structure {index} ({starts[index].symbols}) are fixed: nothing can move.")
        if mask.any() and ensemble.moves_cell:
            raise ValueError(
                f"{starts[index].symbols} has fixed atoms, and {kind} would move them with the cell: keep the volume "
                "constant, or remove the constraint from the file or by atoms.set_constraint()."
            )
    mobile = {int((~mask).sum()) for mask in fixed}
    if any(map(np.any, fixed)) and len(mobile) > 1 and not ensemble.pads:
        raise ValueError(
            f"{kind} needs the same number of atoms that move in all replicas, not {sorted(mobile)}: use another "
            "thermostat, or simulate them one after another."
        )
    return fixed


def _checked_steps(
    time_ps: Number | None, steps: int | None, timestep_fs: Number, sample_every_fs: Number
) -> tuple[int, int]:
    """Number of steps of the run and between samples."""
    if not 0 < timestep_fs <= 100:
        raise ValueError(
            f"The timestep must lie between 0 and 100 fs, not {timestep_fs!r}; with hydrogen, 0.5 fs is usual."
        )
    if (time_ps is None) == (steps is None):
        raise ValueError("Give the length of the run either as time_ps or as steps.")
    length = round(1000 * time_ps / timestep_fs) if time_ps is not None and np.isfinite(time_ps) else steps
    if length is None or length < 1 or length != int(length) or length >= 2**31:
        raise ValueError(f"The run needs a whole positive number of steps below 2³¹, not {length or time_ps!r}.")
    if not sample_every_fs > 0 or not np.isfinite(sample_every_fs):
        raise ValueError(f"sample_every_fs must be positive, not {sample_every_fs!r}.")
    every = max(1, round(sample_every_fs / timestep_fs))
    if every > length:
        raise ValueError(
            f"The run of {length * timestep_fs:g} fs ends before its first frame at {every * timestep_fs:g} fs; "
            "make it longer, or sample_every_fs shorter."
        )
    frames, rest = divmod(int(length), every)
    if rest:
        warnings.warn(
            f"{length * timestep_fs / 1000:g} ps is not a whole number of the {every * timestep_fs:g} fs between "
            f"frames: {frames * every * timestep_fs / 1000:g} ps are simulated, {frames} frames.",
            stacklevel=5,
        )
    return int(length), every
