"""What programs lower to for accelerators, on any machine."""

import re
from typing import Any

import jax

from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential

PLATFORMS = ("cuda", "tpu")


def accelerators_student(seed: int = 0, *, layers: int = 1, l_max: int = 1) -> EquivariantPotential:
    """A small network of hydrogen and oxygen, scalar messages, cutoff 3.5 Å, in the form for accelerators.

    Without harmonics (l_max = 0) it is traced fastest: for tests of what is around it.
    """
    sizes: dict[str, Any] = {"channels": 4, "l_max": l_max, "correlation": 1 + l_max, "cutoff": 3.5, "layers": layers}
    model = Equivariant(radial_functions=4, radial_mlp=(8,), **sizes)
    built = model.build([1, 8], average_neighbors=12.0, scale=0.8, seed=seed)
    return built.replace(form="accelerator")


def check_lowered(jitted: Any, *arguments: Any, platforms: tuple[str, ...] = PLATFORMS, **static: Any) -> None:
    """Nothing of the host, no double precision, no shape that is not known; one program for all platforms."""
    exported = jax.export.export(jitted, platforms=platforms)(*arguments, **static)
    program = exported.mlir_module()
    for what, pattern in {"the host": "callback", "double precision": r"\bf64|xf64", "shapes": r"tensor<\?"}.items():
        found = re.search(rf".*({pattern}).*", program)
        assert found is None, f"{what}: {found.group()[:300]}"
