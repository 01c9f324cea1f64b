"""Conformance tests for classes of one's own: what the package relies on, checked in double precision.

Each function raises an AssertionError that says which law is broken, and returns nothing otherwise, so that one line in
a test suffices: `check_potential(MyPotential(...))`. The package's own classes are held to the same.
"""

from jaxmlip.testing.ensembles import check_ensemble as check_ensemble
from jaxmlip.testing.observables import check_observable as check_observable
from jaxmlip.testing.potentials import check_potential as check_potential
from jaxmlip.testing.potentials import default_structures as default_structures
from jaxmlip.testing.trainables import check_trainable as check_trainable
