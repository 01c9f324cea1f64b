"""A structure with everything that can be said of one besides labels."""

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms


def furnished() -> Atoms:
    """Heavy water with everything that ASE can say of a structure, none of it standard."""
    atoms = Atoms("OH2", [[0, 0, 0.119], [0, 0.763, -0.477], [0, -0.763, -0.477]], cell=[8, 8.5, 9], pbc=True)
    atoms.set_masses([17.999, 2.014, 3.016])  # type: ignore[arg-type]
    atoms.set_momenta([[0.1, 0.2, 1 / 3], [0, 0, -0.1], [0, 0, 0]])
    atoms.set_tags([1, 2, 3])
    atoms.set_initial_charges([-0.8, 0.4, 0.4])
    atoms.set_initial_magnetic_moments([1.5, 0, -0.25])
    atoms.set_array("residue", np.array(["WAT", "WAT", "WAT"]))
    atoms.set_array("dipoles", np.arange(9.0).reshape(3, 3) / 7)
    atoms.set_array("solvent", np.array([True, False, True]))
    atoms.set_constraint(FixAtoms([0, 2]))
    atoms.info = {"config_type": "cation", "charge": 1, "note": 'a "b" \\ c = d', "code": "007", "yes": "T"}
    atoms.info |= {"empty": "", "virial": np.arange(9.0).reshape(3, 3), "vector": np.array([0.1, 1 / 3])}
    atoms.info["nested"] = {"a": [1, "x"]}
    return atoms


def assert_furnished(back: Atoms, atoms: Atoms) -> None:
    assert back.arrays.keys() == atoms.arrays.keys()
    for name, values in atoms.arrays.items():
        np.testing.assert_array_equal(back.arrays[name], values, err_msg=name)
    assert [sorted(each.index) for each in back.constraints] == [[0, 2]]
    assert back.info.keys() >= atoms.info.keys()
    for name, value in atoms.info.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(back.info[name], value, err_msg=name)
        else:
            assert back.info[name] == value, name
