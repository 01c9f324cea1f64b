"""Shapes are checked in every test: beartype enforces the package's jaxtyping annotations."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("jaxmlip", "beartype.beartype")

MOST_MAPPINGS = 25_000
"""Of the 65,530 pieces of memory that Linux lets a process map by default: every compiled program takes several, and
the compiler crashes when there are none left."""


@pytest.fixture(autouse=True, scope="module")
def _room_to_compile() -> Iterator[None]:
    """Forget compiled programs between modules when they have become too many."""
    yield
    mapped = Path("/proc/self/maps")
    if mapped.exists() and len(mapped.read_text().splitlines()) > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


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
