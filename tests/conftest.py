"""Shapes are checked in every test: beartype enforces the package's jaxtyping annotations."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("jaxmlip", "beartype.beartype")


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision inside one test; the package itself never sets it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def ice_data() -> Path:
    """Folder of the published ice labels; tests that need it are skipped where it is not at hand."""
    folder = Path(os.environ.get("JAXMLIP_DATA", "")) / "ice_maceoff"
    if "JAXMLIP_DATA" not in os.environ or not folder.is_dir():
        pytest.skip(
            "needs labelled ice: put the clusters and bulk frames of arXiv:2509.16601's supporting data into "
            "ice_maceoff/ under a folder and set JAXMLIP_DATA to that folder"
        )
    return folder
