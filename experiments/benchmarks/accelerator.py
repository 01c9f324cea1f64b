"""What one device does with all that is compiled here: whether it is right, and how fast, in at most eight minutes.

Runs on whatever device jax finds, prints as it goes, and writes `accelerator.json` and `accelerator.md` after every
section, so that nothing is lost if the machine is. A section that fails says so and the next begins; its rows are part
of the result, and the exit status is 1. Sections:

* device: rates of its matrix products and its memory, beside those of its data sheet where the card is known;
* correctness: energies and forces against values that a CPU has computed in double precision
  (`accelerator_reference.json`; `--make-reference` writes it), with matrix products in float32, as jax does them by
  default (TF32 on recent cards), and with factors in bfloat16, whose force error is told;
* force call: 96 to 49,152 atoms of ice, with and without tables of the radial functions, as a fraction of the roofline:
  the time that what XLA says it does (operations at the rate of TF32, bytes) takes at least, over the time it took.
  Operations and bytes are counted where all atoms are computed at once, and scaled by the number of atoms;
* mlip: the same sizes by mlip's MACE, where it can be imported;
* replicas: blocks of molecular dynamics, as `simulate` runs them;
* models: several potentials simulated by one program, and trained by one step;
* gradient: that of a reweighted average by all parameters, beside energies and forces of the same frames;
* profile: the three kernels that take most of a force call;
* kernel: on a GPU, force calls and a training step with the Pallas kernel of messages, which is no default, beside
  those without, and how far their forces are apart. What fails there is noted, and no reason for the exit status.

Potentials that are timed have random weights of small scale: nothing depends on them, and atoms at 10 K move between
two neighbour lists about as far as those of ice. Usage:

    uv run python experiments/benchmarks/accelerator.py [--small] [--json] [--out FOLDER] [--seconds S]
        [--only SECTION ...] [--make-reference]
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from accelerator_tasks import (
    FULL,
    NEIGHBORS,
    SMALL,
    STUDENT,
    Bench,
    box,
    gradient,
    kernel,
    model,
    models,
    replicas,
    temporary_MiB,
    timed,
)
from ase import Atoms
from contenders import MLIP_MODEL, busy_cores
from on_device import (
    Clock,
    Cost,
    Report,
    Row,
    at_once,
    copy_tbytes,
    kernels,
    launches,
    matrix_tflops,
    products_in,
    published,
    said,
)

from jaxmlip.potentials.equivariant import EquivariantPotential
from jaxmlip.potentials.files import load
from jaxmlip.potentials.potential import Potential, evaluate
from jaxmlip.potentials.tabulation import tabulate
from jaxmlip.systems.graph import graph_from_atoms
from jaxmlip.systems.ice import ice_ih

HERE = Path(__file__).parent
REFERENCE = HERE / "accelerator_reference.json"

PRECISIONS = {"float32": "highest", "default": None, "bfloat16": "BF16_BF16_F32"}
"""Of matrix products, as jax calls them."""

ALLOWED = {"float32": 1e-4, "default": 1e-2}
"""Largest error of a force component over the RMS of all: rounding, and the ten bits of TF32's factors."""


def teachers_and_students() -> dict[str, Callable[[], Potential]]:
    """What is held against the reference."""
    return {
        "student": lambda: load(STUDENT),
        "128 channels, L = 1": lambda: model(128, 1).replace(scale=np.array([20.0])),
        "chgnet:gga": lambda: load("chgnet:gga"),
        "chgnet:r2scan": lambda: load("chgnet:r2scan"),
    }


def make_reference() -> None:
    """Write the reference: energies and forces in double precision on a CPU."""
    if jax.default_backend() != "cpu":
        raise SystemExit("The reference is made on a CPU: set JAX_PLATFORMS=cpu.")
    atoms = ice_ih(16, seed=0)
    atoms.rattle(0.03, seed=1)
    content: Row = {"numbers": atoms.numbers.tolist(), "positions": atoms.positions.round(6).tolist()}
    atoms.positions = content["positions"]
    content |= {"cell": atoms.cell.array.tolist(), "values": {}}
    with jax.enable_x64(True):
        for name, make in teachers_and_students().items():
            potential = make()
            graph = graph_from_atoms(atoms, potential.cutoff, potential.inner_cutoff, dtype=np.float64)
            found = jax.jit(evaluate)(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), potential), graph)
            forces = [float(f"{force:.8g}") for force in np.asarray(found.forces).ravel()]
            content["values"][name] = {"energy": float(found.energy[0]), "forces": forces}
    REFERENCE.write_text(json.dumps(content) + "\n")
    print(f"wrote {REFERENCE}")


def device(bench: Bench, rows: list[Row]) -> None:
    """Rates of the device."""
    on_cpu = jax.default_backend() == "cpu"
    size = 2048 if on_cpu else 8192
    for name, precision in PRECISIONS.items():
        try:
            rows.append({"rate": f"matrix product, {name}, TFLOP/s", "measured": matrix_tflops(precision, size)})
        except Exception as error:  # a backend need not have all
            rows.append({"rate": f"matrix product, {name}, TFLOP/s", "note": said(error)})
    rows.append({"rate": "memory, TB/s", "measured": copy_tbytes(2**28 if on_cpu else 2**32)})
    known = bench.rates
    sheet = [None] * 4 if known is None else [known.float32, known.tf32, None, known.memory]
    for row, value in zip(rows, sheet, strict=True):
        row["data sheet"] = value
    if known is None:
        rows[-1]["note"] = f"the data sheet of {jax.devices()[0].device_kind} is not known here"


def correctness(bench: Bench, rows: list[Row], verdict: Row) -> None:
    """Against the reference, in every precision of matrix products."""
    reference = json.loads(REFERENCE.read_text())
    atoms = Atoms(reference["numbers"], reference["positions"], cell=reference["cell"], pbc=True)
    potentials = {name: make() for name, make in teachers_and_students().items()}
    held = bench.sizes is FULL
    asked = [(name, how) for name in potentials for how in PRECISIONS if held or how == "default"]
    asked += [] if held else [("student", "bfloat16")]

    def call(name: str, how: str) -> Callable[[], Any]:
        potential = potentials[name]
        graph = jax.device_put(graph_from_atoms(atoms, potential.cutoff, potential.inner_cutoff))
        with products_in(PRECISIONS[how]):
            return partial(jax.jit(evaluate).lower(potential, graph).compile(), jax.device_put(potential), graph)

    right = []
    for key, made, error in at_once(bench.clock, {f"{n}; {h}": partial(call, n, h) for n, h in asked}, bench.workers):
        name, how = key.split("; ")
        row: Row = {"potential": name, "products": how}
        rows.append(row)
        try:
            if error is not None:
                raise error
            found = jax.device_get(made())
        except Exception as problem:  # bfloat16 is there to see what it costs: who has none can do without
            row["note" if how == "bfloat16" else "error"] = said(problem)
            right.append(how == "bfloat16")
            continue
        known = reference["values"][name]
        forces = np.reshape(known["forces"], (-1, 3))
        rms = float(np.sqrt((forces**2).mean()))
        off = np.abs(np.asarray(found.forces, np.float64) - forces)
        row["energy error meV/atom"] = 1e3 * abs(float(found.energy[0]) - known["energy"]) / len(atoms)
        row |= {"largest force error meV/Å": 1e3 * off.max(), "RMS force error meV/Å": 1e3 * np.sqrt((off**2).mean())}
        row |= {"RMS force meV/Å": 1e3 * rms}
        if how in ALLOWED:
            row["right"] = bool(off.max() < ALLOWED[how] * rms)
            right.append(row["right"])
    verdict["correct"] = bool(right) and all(right)


def force_call(bench: Bench, rows: list[Row]) -> None:
    """Energies and forces of one box."""
    kinds = {f"L = {L}{tables}": (L, bool(tables)) for L in (0, 1) for tables in ("", ", tables")}
    potentials: dict[str, EquivariantPotential] = {}
    for kind, (L, tables) in kinds.items():
        plain = potentials.get(f"L = {L}") or model(bench.sizes.channels, L, bench.sizes.order)
        potentials[kind] = tabulate(plain) if tables else plain
    counted = 384 if bench.sizes is FULL else 96
    cutoff = potentials["L = 0"].cutoff
    graphs = {atoms: jax.device_put(graph_from_atoms(box(atoms), cutoff)) for atoms in {counted, *bench.sizes.atoms}}

    def compiled(kind: str, atoms: int, form: str | None = None) -> tuple[Any, Any, Any]:
        potential = potentials[kind]
        potential = jax.device_put(potential if form is None else potential.replace(form=form))
        return jax.jit(evaluate).lower(potential, graphs[atoms]).compile(), potential, graphs[atoms]

    # Small tasks do without: on a CPU that is another program to compile for each.
    tasks = {f"{kind}; cost": partial(compiled, kind, counted, "accelerator") for kind in kinds if bench.sizes is FULL}
    tasks |= {f"{kind}; {atoms}": partial(compiled, kind, atoms) for atoms in bench.sizes.atoms for kind in kinds}
    costs: dict[str, Cost | None] = {}
    for key, made, error in at_once(bench.clock, tasks, bench.workers):
        kind, which = key.split("; ")
        if which == "cost":
            costs[kind] = None if error is not None else Cost.of(made[0])
            continue
        atoms = int(which)
        row: Row = {"potential": kind, "atoms": atoms}
        rows.append(row)
        if error is not None:
            row["error"] = said(error)
            continue
        call, *arguments = made
        row |= timed(lambda call=call, arguments=arguments: call(*arguments), bench.seconds, atoms)
        row |= {"temporary MiB": temporary_MiB(call), "kernels": launches(call)}
        if (cost := costs.get(kind)) is not None:
            cost = cost.times(atoms / counted)
            row |= {"GFLOP": 1e-9 * cost.flops, "GB": 1e-9 * cost.bytes}
            row["TFLOP/s"], row["TB/s"] = (1e-12 * each / (1e-3 * row["ms"]) for each in cost)
            row["of roofline"] = cost.least_s(bench.rates) / (1e-3 * row["ms"]) if bench.rates else None


def mlip(bench: Bench, rows: list[Row]) -> None:
    """MACE of mlip in the same sizes, with the kernels it has by default."""
    try:
        import mlip  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        rows.append({"note": said(error)})
        return
    program: Row = {"atoms_of": lambda atoms: atoms}
    exec(MLIP_MODEL, program)  # the contender's own program, which other benchmarks run in another process
    systems = {n: box(n) for n in bench.sizes.atoms if n <= 12288}

    def compiled(L: int, atoms: int) -> tuple[Any, Any, Any]:
        field = program["build"]({"channels": bench.sizes.channels, "L": L, "neighbors": NEIGHBORS})
        at = systems[atoms]
        graph = program["graph"]([at])
        call = jax.jit(lambda params, graph: field.predictor.apply(params, graph).to_prediction())
        return call.lower(field.params, graph).compile(), jax.device_put(field.params), graph

    program["atoms_of"] = lambda atoms: atoms
    tasks = {f"{L}; {atoms}": partial(compiled, L, atoms) for atoms in systems for L in (0, 1)}
    for key, made, error in at_once(bench.clock, tasks, bench.workers):
        L, atoms = map(int, key.split("; "))
        row: Row = {"potential": f"L = {L}", "atoms": atoms}
        rows.append(row)
        if error is not None:
            row["error"] = said(error)
            continue
        call, *arguments = made
        row |= timed(lambda call=call, arguments=arguments: call(*arguments), bench.seconds, atoms)


def profile(bench: Bench, rows: list[Row]) -> None:
    """The kernels of a force call."""
    atoms = bench.sizes.profiled
    for L in (0, 1):
        potential = jax.device_put(model(bench.sizes.channels, L, bench.sizes.order))
        graph = jax.device_put(graph_from_atoms(box(atoms), potential.cutoff))
        call = partial(jax.jit(evaluate), potential, graph)
        rows.extend({"potential": f"L = {L}, {atoms} atoms"} | row for row in kernels(call))
        if bench.clock.left < 0:
            return


SECTIONS: dict[str, tuple[Callable[[Bench, list[Row]], None], float]] = {
    "device": (device, 0.06),
    "force call": (force_call, 0.4),
    "mlip": (mlip, 0.15),
    "replicas": (replicas, 0.4),
    "models": (models, 0.5),
    "gradient": (gradient, 0.6),
    "profile": (profile, 0.5),
    "kernel": (kernel, 0.95),
}
"""Each with its share of the time that the sections before it have left; correctness comes second, with a quarter."""


def main() -> None:
    """Run all sections and print the result."""
    parser = argparse.ArgumentParser(description="What one device does with all that is compiled here")
    parser.add_argument("--small", action="store_true", help="small tasks, for a CPU; ends in four minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/accelerator"), help="folder; runs/accelerator by default"
    )
    parser.add_argument("--seconds", type=float, help="when to end; 460, or 225 of small tasks, by default")
    parser.add_argument("--only", nargs="+", choices=["correctness", *SECTIONS], help="sections; all by default")
    parser.add_argument("--make-reference", action="store_true", help="compute the reference anew, on a CPU")
    options = parser.parse_args()
    if options.make_reference:
        make_reference()
        return
    where = jax.devices()[0]
    clock = Clock(options.seconds or (225.0 if options.small else 460.0))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, min(8, cores // 2))
    sizes, rates = (SMALL if options.small else FULL), published(where.device_kind)
    bench = Bench(sizes, clock, workers, rates, 0.5)
    about = {"platform": where.platform, "jax": jax.__version__, "cores": cores, "small": options.small}
    about |= {"python": sys.version.split()[0], "memory_stats": where.memory_stats(), "busy_before": busy_cores()}
    report = Report(options.out, where.device_kind, about)
    report.end_by(clock, options.json)
    print(f"{where.device_kind} ({where.platform}), jax {jax.__version__}, {cores} cores", flush=True)
    # Nobody has looked where correctness is not among the sections.
    verdict: Row = {"correct": False if options.only is None or "correctness" in options.only else None}
    report.content |= verdict
    sections = dict(SECTIONS)
    order = ["device", "correctness", *list(sections)[1:]]
    for name in [name for name in order if options.only is None or name in options.only]:
        make, share = (partial(correctness, verdict=verdict), 0.25) if name == "correctness" else sections[name]
        clock.begin_section(share)
        report.section(name, partial(make, bench), clock)
        report.content |= verdict
    report.content["seconds"] = round(clock.spent, 1)
    report.end(options.json)


if __name__ == "__main__":
    main()
