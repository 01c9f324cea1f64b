"""What a benchmark of one device needs: rates of known cards, a time limit, timing, rooflines, and kernels by name."""

import concurrent.futures
import contextlib
import json
import os
import re
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from contenders import markdown_table, plain_table

Row = dict[str, Any]


class Rates(NamedTuple):
    """Operations and bytes per second.

    Attributes:
        float32: TFLOP/s of single-precision arithmetic outside the matrix units.
        tf32: TFLOP/s of dense matrix products with TF32 factors.
        memory: TB/s.
    """

    float32: float
    tf32: float
    memory: float


PUBLISHED = {
    "H200": Rates(67.0, 494.7, 4.8),
    "H100 PCIe": Rates(51.2, 378.0, 2.0),
    "H100 NVL": Rates(60.0, 417.5, 3.9),
    "H100": Rates(66.9, 494.7, 3.35),
    "A100-SXM4-40GB": Rates(19.5, 156.0, 1.555),
    "A100-PCIE-40GB": Rates(19.5, 156.0, 1.555),
    "A100 80GB PCIe": Rates(19.5, 156.0, 1.935),
    "A100": Rates(19.5, 156.0, 2.039),
}
"""Of NVIDIA's data sheets, without sparsity, by what `device_kind` contains; the first that fits."""


def published(device_kind: str) -> Rates | None:
    """The rates of a card; None for one that is not in the table."""
    return next((rates for name, rates in PUBLISHED.items() if name.lower() in device_kind.lower()), None)


def products_in(precision: str | None) -> contextlib.AbstractContextManager:
    """Precision of float32 matrix products that are traced within; None for what jax does by default."""
    return contextlib.nullcontext() if precision is None else jax.default_matmul_precision(precision)


def matrix_tflops(precision: str | None = None, size: int = 2048, seconds: float = 0.5) -> float:
    """Rate of a product of two square float32 matrices, TFLOP/s."""
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
    with products_in(precision):
        product = jax.jit(jnp.matmul).lower(a, a).compile()
    return 2e-12 * size**3 / best_s(lambda: product(a, a), seconds)


def copy_tbytes(size: int, seconds: float = 0.5) -> float:
    """Rate at which an array of so many bytes is read and another is written, TB/s, both counted."""
    x = jnp.ones(size // 4, jnp.float32)
    scaled = jax.jit(lambda x: 1.0001 * x)
    return 2e-12 * size / best_s(lambda: scaled(x), seconds)


def best_s(call: Callable[[], Any], seconds: float) -> float:
    """Shortest time of calls made for so many seconds, two at least, after one that is not counted."""
    return min(times_s(call, seconds))


def times_s(call: Callable[[], Any], seconds: float = 1.0, most: int = 100) -> list[float]:
    """Times of calls made for so many seconds, two at least, after one that is not counted."""
    jax.block_until_ready(call())
    times: list[float] = []
    while len(times) < 2 or (sum(times) < seconds and len(times) < most):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return times


class Cost(NamedTuple):
    """What XLA says that a compiled program does: operations and bytes moved."""

    flops: float
    bytes: float

    @classmethod
    def of(cls, compiled: Any) -> "Cost | None":
        """Of a program without loops, whose bodies would be counted once; None where the backend does not say."""
        analysis = compiled.cost_analysis()
        said = analysis[0] if isinstance(analysis, list) else analysis
        if not said or "flops" not in said or "bytes accessed" not in said:
            return None
        return cls(float(said["flops"]), float(said["bytes accessed"]))

    def times(self, factor: float) -> "Cost":
        """Of a system so many times as large."""
        return Cost(self.flops * factor, self.bytes * factor)

    def least_s(self, rates: Rates) -> float:
        """Time below which no program can do this: products at the rate of TF32, bytes at that of the memory."""
        return max(1e-12 * self.flops / rates.tf32, 1e-12 * self.bytes / rates.memory)


LAUNCHED = re.compile(r"= \S+ (?:fusion|custom-call|dot|convolution|sort|scatter|gather|reduce|copy)\(")
"""Instructions of an optimised program that stand in no fusion; on a GPU each is a kernel."""


def launches(compiled: Any) -> int:
    """Kernels of a compiled program, those of loop bodies once: a number to watch."""
    text = compiled.as_text()
    fused = set(re.findall(r"calls=%([\w.-]+)", text))
    computations = re.finditer(r"^(?:ENTRY )?%([\w.-]+) .*?^}", text, flags=re.MULTILINE | re.DOTALL)
    return sum(len(LAUNCHED.findall(body[0])) for body in computations if body[1] not in fused)


class Clock:
    """The seconds that are left, to all and to the section at work."""

    def __init__(self, seconds: float) -> None:
        """Start the clock."""
        self.start, self.seconds = time.perf_counter(), seconds
        self.section_end = self.start + seconds

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    @property
    def left(self) -> float:
        """Seconds that the section has left."""
        return self.section_end - time.perf_counter()

    def begin_section(self, share: float) -> None:
        """Give a section this share of all seconds that are left."""
        now = time.perf_counter()
        self.section_end = now + share * max(0.0, self.start + self.seconds - now)


def at_once(
    clock: Clock, tasks: Mapping[str, Callable[[], Any]], workers: int
) -> Iterator[tuple[str, Any, Exception | None]]:
    """What tasks give that mostly wait for the compiler, taken as they stand in the mapping.

    With several workers all compile first, within two thirds of the section's time, so that nothing disturbs those who
    take the results and measure; a single one compiles what is asked for next. A task that is not done when the time is
    over is one that failed.
    """
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    together = workers > 1
    futures = {name: pool.submit(task) for name, task in tasks.items()} if together else {}
    concurrent.futures.wait(futures.values(), timeout=max(0.0, 0.67 * clock.left))
    for name, task in tasks.items():
        if clock.left < 0:
            yield name, None, TimeoutError("no time of the section was left")
            continue
        future = futures.get(name) or pool.submit(task)
        try:
            result = future.result(timeout=0.0 if together else clock.left)
        except concurrent.futures.TimeoutError:
            future.cancel()
            yield name, None, TimeoutError("not compiled within the section's time")
        except Exception as error:  # of whatever kind: the others go on
            yield name, None, error
        else:
            yield name, result, None
    pool.shutdown(wait=False, cancel_futures=True)


def said(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def kernels(call: Callable[[], Any], most: int = 3) -> list[Row]:
    """The kernels that take most of the time of a call, by jax's profiler; on a CPU the operations of XLA."""
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        of_device = [plane for plane in planes if plane.name.startswith("/device:")]
        spent: Counter[str] = Counter()
        for plane in of_device or planes:
            lines = list(plane.lines)
            # A GPU's lines are its streams, a TPU's its operations; others sum the same by module or by step.
            of_kernels = [line for kind in ("Stream", "XLA Ops") for line in lines if line.name.startswith(kind)]
            streams = [line for line in of_kernels if line.name.startswith("Stream")]
            for line in (streams or of_kernels) if of_device else lines:
                for event in line.events:
                    if of_device or any(key == "hlo_op" for key, _ in event.stats):
                        spent[event.name] += event.duration_ns
    total = sum(spent.values())
    if not total:
        raise RuntimeError("the profile has no kernels: " + ", ".join(plane.name for plane in planes))
    return [
        {"kernel": name[:80], "ms": ns / 1e6, "share of kernel time": ns / total}
        for name, ns in spent.most_common(most)
    ]


class Report:
    """Tables that are printed and written as they come, and the one JSON object of all of them."""

    def __init__(self, folder: Path, device: str, about: Row) -> None:
        """Begin a report on a device."""
        self.folder, self.lock = folder, threading.Lock()
        self.content: Row = {"device": device, "correct": False, **about, "failed": [], "sections": {}, "tables": {}}

    def section(self, name: str, make: Callable[[list[Row]], None], clock: Clock) -> None:
        """Make a table, row by row; what fails is told, and the rest goes on."""
        rows: list[Row] = []
        began, state = clock.spent, {"status": "ok"}
        print(f"\n{name} (up to {clock.left:.0f} s)", flush=True)
        try:
            make(rows)
        except Exception as error:  # one section must not take the others with it
            state = {"status": "failed", "error": said(error)}
            print("".join(traceback.format_exception(error)[-3:]), file=sys.stderr, flush=True)
        if state["status"] == "ok" and (bad := [row["error"] for row in rows if row.get("error")]):
            state = {"status": "failed", "error": f"{len(bad)} of {len(rows)} rows: {bad[0]}"}
        with self.lock:
            self.content["sections"][name] = state | {"seconds": round(clock.spent - began, 1)}
            self.content["tables"][name] = rows
            if state["status"] != "ok":
                self.content["failed"].append(name)
            self.write()
        print(text_table(rows) if rows else "–", flush=True)
        print(f"{name}: {state['status']}{', ' + state['error'] if 'error' in state else ''}", flush=True)

    def write(self) -> None:
        """JSON, and tables in Markdown."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "accelerator.json").write_text(json.dumps(self.content, indent=1) + "\n")
        parts = [f"# {self.content['device']}", f"correct: {self.content['correct']}"]
        for name, rows in self.content["tables"].items():
            state = self.content["sections"][name]
            parts += [f"## {name}", *([state["error"]] if "error" in state else []), text_table(rows, markdown_table)]
        (self.folder / "accelerator.md").write_text("\n\n".join(parts) + "\n")

    def end(self, as_json: bool) -> None:
        """Print the last line and leave, also where the compiler is still at work in another thread."""
        with self.lock:
            self.write()
            last = json.dumps(self.content) if as_json else f"{self.content['device']}: {self.folder}"
            print(last, flush=True)
            sys.stdout.flush()
            os._exit(1 if self.content["failed"] or self.content["correct"] is False else 0)

    def end_by(self, clock: Clock, as_json: bool) -> None:
        """End when the time of all is over, whatever hangs."""

        def stop() -> None:
            with self.lock:
                self.content["failed"].append("time: ended before all sections were done")
            self.end(as_json)

        timer = threading.Timer(clock.seconds - clock.spent, stop)
        timer.daemon = True
        timer.start()


def text_table(rows: list[Row], how: Callable[..., str] = plain_table) -> str:
    """Rows as text; a column for every key that any has."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    return how(header, [[shown(row.get(key)) for key in header] for row in rows]) if rows else "–"


def shown(value: Any) -> str:
    """A cell of a table."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e3 or not np.isfinite(value) else f"{value:.0f}"
    return str(value)
