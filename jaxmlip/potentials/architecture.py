"""What describes an equivariant network, as users write it and files keep it."""

from typing import Literal

import numpy as np
from pydantic import BaseModel, model_validator


class Architecture(BaseModel, frozen=True, extra="forbid"):
    """Sizes and cutoff of an equivariant network.

    Attributes:
        channels: number of features of each l.
        l_max: largest angular momentum of the spherical harmonics and of the products' factors.
        correlation: highest order of the products, 1 to 4; an atom sees bodies of order correlation + 1 per layer.
        layers: number of interactions; the potential reaches layers · cutoff far.
        message_l: largest l of the messages between layers, 0 to 2: scalars, vectors, tensors.
        cutoff: Å.
        radial_functions: number of Bessel functions.
        envelope_power: p of the polynomial envelope.
        distance_transform: "agnesi" measures distances in covalent radii before the radial basis (see `agnesi`).
        learned_radial_scale: whether the radial basis sees r · exp(½(a_i + a_j)), with a parameter a for each element
            that starts at 0: heavy and light elements may need their resolution at different distances.
        repulsion: whether to add the screened nuclear repulsion (see `zbl`), so that no two atoms can coincide.
        first_interaction: "residual", with a skip connection around the first layer as in ScaleShiftMACE, or
            "agnostic", with a linear map of the messages for each element instead, as in MACE.
        radial_mlp: widths of the hidden layers of the radial network.
        readout_hidden: hidden width of the last layer's readout.
    """

    channels: int = 64
    l_max: int = 3
    correlation: int = 3
    layers: int = 2
    message_l: int = 0
    cutoff: float = 5.0
    radial_functions: int = 8
    envelope_power: int = 5
    distance_transform: Literal["none", "agnesi"] = "none"
    learned_radial_scale: bool = False
    repulsion: bool = False
    first_interaction: Literal["residual", "agnostic"] = "residual"
    radial_mlp: tuple[int, ...] = (64, 64, 64)
    readout_hidden: int = 16

    @model_validator(mode="after")
    def _check(self) -> "Architecture":
        """Raise ValueError, as one sentence, for a value that describes no network."""
        ranges = {
            "channels": (1, None),
            "l_max": (0, 4),
            "correlation": (1, 4),
            "layers": (1, None),
            "message_l": (0, 2),
            "radial_functions": (1, None),
            "envelope_power": (2, None),
            "readout_hidden": (1, None),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                allowed = f"at least {low}" if high is None else f"between {low} and {high}"
                raise ValueError(f"{name} is {value}, but it must be {allowed}.")
        if self.message_l > self.l_max:
            raise ValueError(
                f"message_l is {self.message_l} and l_max is {self.l_max}, but messages cannot have a larger "
                "l than the products they are made of: raise l_max or lower message_l."
            )
        if not (np.isfinite(self.cutoff) and self.cutoff > 0):
            raise ValueError(f"cutoff is {self.cutoff} Å, but it must be a positive length.")
        if not self.radial_mlp or min(self.radial_mlp) < 1:
            raise ValueError(
                f"radial_mlp is {self.radial_mlp}, but it must name the width of at least one hidden layer."
            )
        return self
