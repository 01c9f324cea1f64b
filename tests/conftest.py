"""Shapes are checked in every test: beartype enforces the package's jaxtyping annotations."""

import gc
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if sys.dont_write_bytecode:
    # Not beside the sources, then; but without any each process takes 13 s longer to start.
    bytecode = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    sys.dont_write_bytecode, sys.pycache_prefix = False, bytecode
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": bytecode}

import jax
import jaxlib
import numpy as np
import pytest
from jaxtyping import install_import_hook

install_import_hook("jaxmlip", "beartype.beartype")

QUICK_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1"
"""Most of the time of tests is the compiler's, and this takes a third of it.

Without fusion emitters an older generator writes the loops: the same mathematics, other rounding.
"""

LONG_FIRST = ("study", "validation", "simulation", "training", "potentials", "observables", "testing", "systems")
"""Folders in the order in which they are run, after the files beside them: those whose files take longest, lest one be
left at the end for one process while the others have nothing to do."""

MOST_MAPPINGS = 35_000
"""Of the 65,530 pieces of memory that Linux lets a process map by default: every compiled program takes several, and
the compiler crashes when there are none left."""


def pytest_configure(config: pytest.Config) -> None:
    """Compile quickly where slow tests are left out; with them, code is compiled as it is for users.

    Flags that are set already are kept. Processes that tests start inherit all of it.
    """
    if _quick(config):
        if "XLA_FLAGS" not in os.environ and _compiler_knows("xla_cpu_use_fusion_emitters"):
            os.environ["XLA_FLAGS"] = QUICK_TO_COMPILE
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    config.option.loadscopereorder = False  # by xdist, to the number of tests; see LONG_FIRST
    gc.set_threshold(50_000, 20, 50)  # tracing makes many objects; looking at all there are each time takes long


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first."""
    items.sort(key=lambda item: LONG_FIRST.index(folder) + 1 if (folder := item.path.parent.name) in LONG_FIRST else 0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Optimise only programs that run for longer than they compile: those of tests of physics, and of some others."""
    marked = any(item.get_closest_marker(name) for name in ("physics", "optimised"))
    least = _quick(item.config) and not marked
    jax.config.update("jax_disable_most_optimizations", least)


def _compiler_knows(flag: str) -> bool:
    """Whether this version of XLA has the flag: it ends the process if it is given one that it has not."""
    for library in Path(jaxlib.__file__).parent.glob("libjax_common.*"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(flag.encode()) >= 0
    return False


def _quick(config: pytest.Config) -> bool:
    return "not slow" in config.option.markexpr


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


@pytest.fixture
def agrees(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Assert that a value is what is known of it, within so many combined σ; the table after the tests shows it.

    Called with the quantity in words, its value and standard error, and what it should be, with the standard error
    of that if it is not exact.
    """

    def compare(
        quantity: str, value: Any, error: Any, known: float, *, known_error: float = 0.0, most: float = 3.0
    ) -> None:
        combined = float(np.hypot(error, known_error))
        deviation = (float(value) - known) / combined
        numbers = [float(number) for number in (value, error, known, known_error, deviation)]
        record_property("physics", [quantity, *numbers])  # workers can send plain numbers only
        assert abs(deviation) < most, f"{quantity}: {value} ± {error}, not {known} ± {known_error}"

    return compare


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """All that was held against statistical mechanics, in σ."""
    reports = [report for word in ("passed", "failed") for report in terminalreporter.stats.get(word, [])]
    rows = [row for report in reports for name, row in report.user_properties if name == "physics"]
    if not rows:
        return
    terminalreporter.section("physics")
    terminalreporter.write_line("| quantity | measured | known | σ |\n|---|---|---|---|")
    for quantity, value, error, known, known_error, deviation in rows:
        exact = f"{known:.5g} ± {known_error:.2g}" if known_error else f"{known:.5g}"
        terminalreporter.write_line(f"| {quantity} | {value:.5g} ± {error:.2g} | {exact} | {deviation:+.1f} |")
