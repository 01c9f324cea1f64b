"""Pytrees of a class of their own."""

import inspect
from typing import Any

import flax.struct


class Distinct:
    """Base of families of pytrees whose members jax must tell apart though their fields are alike.

    From version 0.10.0 to 0.11.2 at least, jax takes two structures for equal that are of different classes made by
    `jax.tree_util.register_dataclass`, as flax's are, if their fields are: a function that was compiled for the one
    is then sometimes run for the other, without a word. What is static is compared, so every class says which it is.
    Subclasses may be made by `flax.struct.dataclass` or be a `flax.struct.PyTreeNode`, which this must stand before.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Give the class a static field whose value is the class."""
        cls.__annotations__ = inspect.get_annotations(cls) | {"node_class": type}
        cls.node_class = flax.struct.field(pytree_node=False, default=cls, kw_only=True, repr=False, compare=False)
        super().__init_subclass__(**options)
