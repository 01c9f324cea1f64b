# /// script
# requires-python = ">=3.11"
# dependencies = ["matplotlib>=3.9,<4"]
# ///
"""Energy and forces of the equivariant potential for boxes of ice Ih of 96 to 12288 atoms: time and memory per atom.

The time per atom should not depend on the size once there is work for all cores: the aim is at most 20 % between sizes
from 768 atoms on. Memory is what XLA sets aside for temporary arrays. Calls of all sizes alternate; sizes that would
not fit into the memory that is free are left out. Neighbour lists are made beforehand for the forces, and timed by
themselves as the engine makes them anew on its way: for the cutoff and a skin, from all pairs or, in large cells, from
bins. Usage:

    uv run experiments/benchmarks/scaling.py [--channels 128] [--L 0] [--atoms 96 384 768 1536 3072 6144 12288]
        [--calls 5] [--cores N] [--json] [--out FOLDER]

It runs on whatever jax finds, an accelerator too where the project's environment has jax for one.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from contenders import (
    COLORS,
    JAXMLIP_MODEL,
    OURS_COMMAND,
    Contender,
    add_options,
    describe,
    disturbance,
    ice,
    machine,
    markdown_table,
    median_ms,
    plain_table,
    use_cores,
    write,
)

SIZES = (96, 384, 768, 1536, 3072, 6144, 12288)
FLAT_FROM = 768
AIM = 0.2

SKIN = 0.5
"""Å, of the lists, as in simulations by default."""

OURS = """
import pathlib, re
from jaxmlip.systems.capacity import Capacity, lists_of_replicas, needs_of
from jaxmlip.systems.device_lists import cell_heights
from jaxmlip.potentials.potential import evaluate
from jaxmlip.systems.graph import graph_from_atoms
compiled = {}
def lister(atoms, cutoff, skin):
    positions, cells = np.asarray(atoms.positions)[None], np.asarray(atoms.cell)[None]
    heights, reach = cell_heights(cells)[0], cutoff + skin
    needs = needs_of(positions, cells, heights, (cutoff, 0.0), skin, len(atoms))
    capacity = Capacity.holding(needs, heights, reach, len(atoms))
    where = [np.float32(each) for each in (positions, cells, np.linalg.inv(cells))]
    arrays = jax.device_put([atoms.numbers[None], *where])
    call = jax.jit(lambda species, *where: lists_of_replicas(species, *where, reach, capacity))
    return (lambda: jax.block_until_ready(call(*arrays))), "all pairs" if capacity.bins is None else "bins"
def ready(order):
    potential, atoms = build(order), atoms_of(order["structure"])
    compiled[order["name"] + " lists"], way = lister(atoms, potential.cutoff, order["skin"])
    graph = jax.device_put(graph_from_atoms(atoms, potential.cutoff))
    start = time.perf_counter()
    call = jax.jit(lambda potential, graph: evaluate(potential, graph)).lower(potential, graph).compile()
    compiled[order["name"]] = lambda: jax.block_until_ready(call(potential, graph))
    memory, device = call.memory_analysis(), jax.devices()[0]
    free = None
    if device.platform == "cpu" and pathlib.Path("/proc/meminfo").exists():
        free = 1024 * int(re.search(r"MemAvailable: +([0-9]+)", pathlib.Path("/proc/meminfo").read_text())[1])
    elif device.platform != "cpu" and device.memory_stats():
        free = device.memory_stats()["bytes_limit"] - device.memory_stats()["bytes_in_use"]
    return {
        "compile_s": time.perf_counter() - start, "temporary_bytes": memory.temp_size_in_bytes, "free_bytes": free,
        "device": device.device_kind, "slots": graph.n_slots, "way": way,
    }
def prepare(order):
    return compiled[order["name"]]
def plain(name, result):
    return {}
"""


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description="Time and memory per atom of energy and forces, by system size")
    add_options(parser, channels=128, calls=5)
    parser.add_argument("--atoms", type=int, nargs="+", default=SIZES, help="sizes, multiples of 24")
    options = parser.parse_args()
    if any(atoms % 24 for atoms in options.atoms):
        parser.error("boxes of ice Ih hold multiples of 24 atoms.")
    here = machine(use_cores(options.cores))

    contender = Contender("jaxmlip", OURS_COMMAND, JAXMLIP_MODEL + OURS)
    order = {"channels": options.channels, "L": options.L}
    facts, left_out = {}, []
    for atoms in sorted(set(options.atoms)):
        structure = ice(atoms // 3)
        # One mean number of neighbours for all: the potential is the same whatever the box.
        order.setdefault("neighbors", structure["neighbors"])
        said = contender.ask("ready", str(atoms), structure=structure, skin=SKIN, **order)
        if said["free_bytes"] is not None and said["temporary_bytes"] > 0.9 * said["free_bytes"]:
            needed, free = said["temporary_bytes"] / 2**30, said["free_bytes"] / 2**30
            left_out.append(f"{atoms} atoms are left out: they need {needed:.1f} GiB, and {free:.1f} GiB are free.")
            continue
        facts[atoms] = said
        for name in (str(atoms), f"{atoms} lists"):
            contender.ask("prepare", name)
            contender.ask("call", name)
    if not facts:
        raise SystemExit("\n".join(left_out))
    times: dict[int, list[float]] = {atoms: [] for atoms in facts}
    listing: dict[int, list[float]] = {atoms: [] for atoms in facts}
    for _ in range(options.calls):
        for atoms in facts:
            times[atoms].append(contender.ask("call", str(atoms))["s"])
            listing[atoms].append(contender.ask("call", f"{atoms} lists")["s"])

    ms, lists_ms = ({atoms: median_ms(each[atoms]) for atoms in facts} for each in (times, listing))
    per_atom, lists_per_atom = ({atoms: 1e3 * each[atoms] / atoms for atoms in facts} for each in (ms, lists_ms))
    temporary = {atoms: said["temporary_bytes"] / 2**10 / atoms for atoms, said in facts.items()}
    header = ["atoms", "slots", "ms", "µs per atom", "temporary MiB", "temporary KiB per atom", "compile s"]
    header += ["lists", "ms", "µs per atom"]
    rows = []
    for atoms, said in facts.items():
        time = [f"{ms[atoms]:.0f}", f"{per_atom[atoms]:.0f}"]
        memory = [f"{said['temporary_bytes'] / 2**20:.0f}", f"{temporary[atoms]:.0f}"]
        rows.append([str(atoms), str(said["slots"]), *time, *memory, f"{said['compile_s']:.1f}"])
        rows[-1] += [said["way"], f"{lists_ms[atoms]:.1f}", f"{lists_per_atom[atoms]:.1f}"]
    deviation = largest_deviation([per_atom[atoms] for atoms in facts if atoms >= FLAT_FROM])
    device = next(iter(facts.values()))["device"]
    task = f"ice Ih, {options.channels} channels, L = {options.L}, float32"
    where = describe(here) if device == "cpu" else f"{device} ({describe(here)})"
    notes = [f"Energy and forces of {task}; median of {options.calls} calls.", where]
    if deviation is None:
        flat = f"There are no two sizes from {FLAT_FROM} atoms on: how flat the time per atom is remains open."
    else:
        flat = f"Largest deviation of the time per atom from {FLAT_FROM} atoms on from its median there: " + (
            f"{100 * deviation:.0f} % ({'within' if deviation <= AIM else 'beyond'} the aim of {100 * AIM:.0f} %)."
        )
    flat += " Slots are for neighbours: as many as the atom with most neighbours has, and all atoms pay for them."
    listed = (
        f"Lists hold neighbours within the cutoff and a skin of {SKIN} Å; they are made anew when the skin is used up."
    )
    below = [flat, listed, *left_out, *disturbance(here)]
    print("\n".join([*notes, "", plain_table(header, rows), "", *below]))

    result = {
        "ms": ms,
        "slots": {atoms: said["slots"] for atoms, said in facts.items()},
        "us_per_atom": per_atom,
        "lists_ms": lists_ms,
        "temporary_bytes": {atoms: said["temporary_bytes"] for atoms, said in facts.items()},
        "compile_s": {atoms: said["compile_s"] for atoms, said in facts.items()},
        "largest_deviation": deviation,
        "channels": options.channels,
        "L": options.L,
        "calls": options.calls,
        "machine": here | {"device": device},
    }
    if options.out:
        write(options.out, "scaling", "Time and memory by size", notes, markdown_table(header, rows), below)
        curves(
            options.out / "scaling.png", f"Energy and forces of {task}\n{where}", per_atom, lists_per_atom, temporary
        )
    if options.json:
        print(json.dumps(result))


def largest_deviation(values: Sequence[float]) -> float | None:
    """From the median, relative to it; None for fewer than two values."""
    if len(values) < 2:
        return None
    middle = statistics.median(values)
    return max(abs(value / middle - 1) for value in values)


def curves(
    path: Path, title: str, per_atom: dict[int, float], lists: dict[int, float], temporary: dict[int, float]
) -> None:
    """Time and memory per atom by size, with the band that the time is to stay in."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.plot(list(per_atom), list(per_atom.values()), "o-", color=COLORS["jaxmlip"], label="energy and forces")
    left.plot(list(lists), list(lists.values()), "s--", color=COLORS["jaxmlip"], ms=4, label="neighbour lists")
    large = {atoms: value for atoms, value in per_atom.items() if atoms >= FLAT_FROM}
    if len(large) > 1:
        middle = statistics.median(large.values())
        left.fill_between(
            [min(large), max(large)],
            (1 - AIM) * middle,
            (1 + AIM) * middle,
            color="0.9",
            lw=0,
            zorder=0,
            label=f"median from {FLAT_FROM} atoms on ± {100 * AIM:.0f} %",
        )
    left.legend(frameon=False, loc="center right", fontsize=8)
    left.set(ylabel="time per atom / µs (median)", ylim=(0, 1.25 * max(per_atom.values())))
    right.plot(list(temporary), list(temporary.values()), "o-", color="#0072B2")
    right.set(ylabel="temporary memory per atom / KiB", ylim=(0, 1.25 * max(temporary.values())))
    for ax in (left, right):
        ax.set(xscale="log", xlabel="atoms")
        ax.set_xticks(list(per_atom), [str(atoms) for atoms in per_atom], rotation=45)
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    fig.suptitle(title, fontsize=10)
    fig.savefig(path, dpi=160)
    plt.close(fig)


if __name__ == "__main__":
    main()
