"""The architectures that a new potential can have, as users write them."""

from collections.abc import Sequence
from typing import Annotated, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import pydantic
from jaxtyping import Float

from jaxmlip.potentials.chgnet import CHGNetModel
from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.trainable import Trainable

DEFAULT = "equivariant"
"""Kind of an architecture that does not say of which it is."""

MODELS: dict[str, type[pydantic.BaseModel]] = {"equivariant": Equivariant, "chgnet": CHGNetModel}
"""By kind, all that configurations can ask for."""


@runtime_checkable
class Model(Protocol):
    """What training asks of an architecture."""

    @property
    def cutoff(self) -> float:
        """Å, of its potentials."""
        ...

    @property
    def inner_cutoff(self) -> float:
        """Å, of its potentials; 0 if they have none."""
        ...

    def build(
        self,
        species: Sequence[int],
        *,
        average_neighbors: float,
        references: Float[np.ndarray, "119"] | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
        seed: int = 0,
    ) -> Trainable:
        """A potential with random parameters and one readout.

        Args:
            species: atomic numbers it is to know.
            average_neighbors: mean number of neighbours within the cutoff.
            references: elemental reference energies in eV by atomic number; zero by default.
            scale: eV, multiplies the network's output.
            shift: eV, added to each atom's energy.
            seed: of the random parameters.
        """
        ...


def _kind(said: Any) -> str:
    return said.get("kind", DEFAULT) if isinstance(said, dict) else getattr(said, "kind", DEFAULT)


AnyModel: TypeAlias = Annotated[
    Annotated[Equivariant, pydantic.Tag("equivariant")] | Annotated[CHGNetModel, pydantic.Tag("chgnet")],
    pydantic.Discriminator(_kind),
    pydantic.Field(description="architecture: the fields of jm.Equivariant, or {kind: chgnet}"),
]
"""An architecture in a configuration; without `kind` it is an equivariant one."""
