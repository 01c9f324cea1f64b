"""Which software made a result."""

import importlib.util
import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Versions of everything that decides the numbers."""
    packages = ["jaxmlip", "jax", "jaxlib", "flax", "optax", "jax-md", "e3nn-jax", "numpy", "ase", "genice2", "pymbar"]
    packages += ["chgnet"] * (importlib.util.find_spec("chgnet") is not None)
    return {"python": platform.python_version()} | {package: version(package) for package in packages}
