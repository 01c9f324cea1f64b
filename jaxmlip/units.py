"""Units: eV, Å and amu inside; K, fs and GPa at the border, where names carry the unit.

The values are ASE's (CODATA 2014), so that numbers agree with those of an ASE calculator to the last digit.
"""

from ase import units as ase_units

KB: float = ase_units.kB
"""Boltzmann constant, eV/K."""

FS: float = ase_units.fs
"""One femtosecond in the internal unit of time, Å √(amu/eV)."""

GPA: float = ase_units.GPa
"""One GPa in eV/Å³."""

G_PER_CM3: float = 1e-3 * ase_units.kg / (1e-2 * ase_units.m) ** 3
"""One g/cm³ in amu/Å³."""
