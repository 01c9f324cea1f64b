"""What the benchmarks of this folder share: contenders in processes of their own, tables, and a word on the machine.

A contender is a Python program that runs in an environment of its own and takes orders as JSON lines. Its program
defines `prepare(order)`, which makes everything that is not to be timed (potential, neighbour list) and returns the
call that is, and `plain(name, result)`, which says of a result and of the call what JSON can hold.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
OURS_COMMAND = ["uv", "run", "--project", str(REPOSITORY), "python"]
COLORS = {
    "jaxmlip": "#009E73",
    "jaxmlip, tables": "#005C43",
    "mlip": "#56B4E9",
    "mace-torch": "#E69F00",
    "jax-md": "#CC79A7",
    "chgnet": "#D55E00",
}

BUSY = 0.2
"""Share of a second for which one core is at work on something else, from which on a machine is not idle."""

WORKER = """
import json, resource, sys, time
def atoms_of(structure):
    from ase import Atoms
    cell = structure.get("cell")
    return Atoms(structure["numbers"], structure["positions"], cell=cell, pbc=cell is not None)
calls = {}
for line in sys.stdin:
    order = json.loads(line)
    name, do = order["name"], order["do"]
    if do == "prepare":
        calls[name] = prepare(order)
        start = time.perf_counter()
        result = calls[name]()
        answer = {"first_s": time.perf_counter() - start, **plain(name, result)}
    elif do == "call":
        calls[name]()  # the others' turns have emptied the caches, which a simulation finds full
        start, start_cpu = time.perf_counter(), time.process_time()
        calls[name]()
        answer = {"s": time.perf_counter() - start, "cpu_s": time.process_time() - start_cpu}
    else:
        answer = globals()[do](order)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    answer["peak_MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print("answer " + json.dumps(answer), flush=True)
"""

JAXMLIP_MODEL = """
import json
import jax, numpy as np
def build(order):
    if order.get("weights"):
        from jaxmlip.potentials.mace import from_mace
        with np.load(order["weights"], allow_pickle=False) as file:
            said = json.loads(str(file["said"]))
            potential = from_mace(said["plain"] | {key: file[name] for name, key in said["arrays"].items()})
    else:
        from jaxmlip.potentials.equivariant import Equivariant
        architecture = Equivariant(
            channels=order["channels"], l_max=3, correlation=3, layers=2, message_l=order["L"], cutoff=5.0,
            radial_mlp=(64, 64, 64),
        )
        potential = architecture.build(order.get("species", (1, 8)), average_neighbors=order["neighbors"], seed=0)
    return jax.device_put(potential)
def count(params):
    return sum(np.size(leaf) for leaf in jax.tree.leaves(params))
"""
"""The project's potential: ScaleShiftMACE with residual interactions. All contenders below have the same sizes."""

TABULATED = """
from jaxmlip.potentials.tabulation import tabulate
evaluated = build
def build(order):
    return tabulate(evaluated(order), order.get("tolerance", 1e-5))
"""
"""The same potential with its radial functions in tables, as one would use it in a long simulation."""

TABLES = "jaxmlip, tables"

MACE_MODEL = """
import importlib.util, json
import numpy as np, torch
from mace import data, modules, tools
from mace.tools import torch_geometric
from e3nn import o3  # after mace, which makes it load with a recent torch
models = {}
def build(order):
    torch.manual_seed(0)
    channels, species = order["channels"], order.get("species", (1, 8))
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    models[order["name"]] = model = modules.ScaleShiftMACE(
        r_max=5.0, num_bessel=8, num_polynomial_cutoff=5, max_ell=3, interaction_cls=block, interaction_cls_first=block,
        num_interactions=2, num_elements=len(species), atomic_numbers=list(species), correlation=3,
        atomic_energies=np.zeros(len(species)),
        hidden_irreps=o3.Irreps(" + ".join([f"{channels}x0e", f"{channels}x1o"][: 1 + order["L"]])),
        MLP_irreps=o3.Irreps("16x0e"), gate=torch.nn.functional.silu, radial_MLP=[64, 64, 64],
        avg_num_neighbors=order["neighbors"], atomic_inter_scale=1.0, atomic_inter_shift=0.0,
    )
    return model
def graph(structures, species=(1, 8)):
    table = tools.AtomicNumberTable(list(species))
    configurations = [data.config_from_atoms(atoms_of(structure)) for structure in structures]
    graphs = [data.AtomicData.from_config(configuration, table, 5.0) for configuration in configurations]
    loader = torch_geometric.dataloader.DataLoader(graphs, batch_size=len(graphs), shuffle=False, drop_last=False)
    return next(iter(loader)).to_dict()
def hand_over(order):
    # The module needs torch and numpy alone, the package around it does not: it is loaded as a file.
    place = importlib.util.spec_from_file_location("mace_checkpoint", order["extractor"])
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    extracted = module.extract(build(order))  # the same as every time: its weights are seeded
    arrays = [key for key, value in extracted.items() if isinstance(value, np.ndarray)]
    said = {
        "arrays": {f"array_{number}": key for number, key in enumerate(arrays)},
        "plain": {key: value for key, value in extracted.items() if key not in arrays},
    }
    np.savez(
        order["path"],
        said=np.array(json.dumps(said, default=lambda value: value.item())),
        **{name: extracted[key] for name, key in said["arrays"].items()},
    )
    return {}
def count(model):
    return sum(p.numel() for p in model.parameters())
"""
"""mace-torch's ScaleShiftMACE as its own ASE calculator runs it by default: float32, no torch.compile."""

MLIP_MODEL = """
import logging
import jax, numpy as np
from mlip.data import ChemicalSystem, DatasetInfo
from mlip.graph import Graph
from mlip.graph.batching_helpers import batch_graphs, pad_with_graphs
from mlip.models import ForceField, Mace
logging.disable(logging.WARNING)
def build(order):
    # The residual connection makes its first layer that of ScaleShiftMACE, as in the other contenders.
    config = Mace.Config(
        num_channels=order["channels"], l_max=3, node_symmetry=order["L"], correlation=3, num_layers=2, num_rbf=8,
        readout_irreps=("16x0e", "0e"), radial_mlp_hidden=[64, 64, 64], residual_connection_first_layer=True,
        avg_num_neighbors=order["neighbors"],
    )
    info = DatasetInfo(
        atomic_energies_map={z: 0.0 for z in order.get("species", (1, 8))}, graph_cutoff_angstrom=5.0,
        avg_num_neighbors=order["neighbors"],
    )
    return ForceField.from_mlip_network(Mace(config, info), seed=0)
def graph(structures):
    graphs = []
    for structure in structures:
        atoms = atoms_of(structure)
        system = ChemicalSystem(
            atomic_numbers=atoms.numbers, positions=atoms.positions, pbc=tuple(map(bool, atoms.pbc)),
            cell=atoms.cell.array if atoms.pbc.any() else None, energy=structure.get("energy"),
            forces=np.array(structure["forces"]) if "forces" in structure else None,
        )
        graphs.append(Graph.from_chemical_system(system, 5.0))
    if len(graphs) > 1:  # its masks take the last of several graphs for padding, which has at least one atom
        batch = batch_graphs(graphs)
        batch = pad_with_graphs(batch, int(batch.n_node.sum()) + 1, int(batch.n_edge.sum()), len(graphs) + 1)
    else:
        batch = graphs[0]
    return jax.device_put(batch)
def count(params):
    return sum(np.size(leaf) for leaf in jax.tree.leaves(params))
"""
"""MACE of `mlip`, with the backends it has by default."""


class Contender:
    """A worker process that prepares and times calls on request."""

    def __init__(
        self, name: str, command: Sequence[str], program: str, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start the process.

        Args:
            name: for messages.
            command: an interpreter; the options it is called with follow.
            program: what it runs; see the module.
            environment: variables to add to this process's own.
        """
        self.name = name
        self.process = subprocess.Popen(
            [*command, "-W", "ignore", "-c", program + WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_outside() | dict(environment or {}),
            cwd=REPOSITORY,
        )

    def ask(self, do: str, name: str, **order) -> dict[str, Any]:
        """Send an order and wait for the answer.

        Args:
            do: `prepare` a call and make it once, make the `call` again, or a function of the program.
            name: of the call.
            **order: what the program needs to know.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, "name": name} | order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, which the loop below finds too
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        sys.exit(f"The contender {self.name} ended before it answered; its message stands above.")


def _outside() -> dict[str, str]:
    """The variables of this process, without those that would lead another one into its environment."""
    return {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}


def interleaved(
    contenders: Mapping[str, Contender], name: str, calls: int, *, warm_up: int = 1, clock: str = "s"
) -> dict[str, list[float]]:
    """Seconds of every call, one contender after the other in each round, so that disturbances hit all alike.

    Before each timed call goes one that is not. The clock is the wall's, "s", or that of the processor's work, "cpu_s".
    """
    for contender in contenders.values():
        for _ in range(warm_up):
            contender.ask("call", name)
    times: dict[str, list[float]] = {who: [] for who in contenders}
    for _ in range(calls):
        for who, contender in contenders.items():
            times[who].append(contender.ask("call", name)[clock])
    return times


@dataclasses.dataclass(frozen=True)
class Measured:
    """What contenders have been found to need for the same task.

    Attributes:
        first: what each said after its first call.
        ms: median time of a call.
        fastest_ms: shortest time of a call; far below the median if the machine had something else to do.
        peak_MiB: most memory the process had resident, libraries and compiler included.
        same_weights: whether ours are mace-torch's.
    """

    first: dict[str, dict[str, Any]]
    ms: dict[str, float]
    fastest_ms: dict[str, float]
    peak_MiB: dict[str, float]
    same_weights: bool

    def header(self, call: str) -> list[str]:
        """Of the table; `call` is what is timed."""
        return ["contender", "ms", "fastest ms", "ratio", f"first {call} s", "peak MiB", "XLA temp MiB", "parameters"]

    def rows(self) -> list[list[str]]:
        """Of the table."""
        rows = []
        for who, said in self.first.items():
            times = [self.ms[who], self.fastest_ms[who]]
            ratio, temporary = self.ms[who] / self.ms["jaxmlip"], said.get("temporary_MiB")
            memory = [f"{self.peak_MiB[who]:.0f}", "–" if temporary is None else f"{temporary:.0f}"]
            rows.append([who, *(f"{ms:.0f}" for ms in times), f"{ratio:.2f}", f"{said['first_s']:.1f}", *memory])
            rows[-1].append(str(said["parameters"]))
        return rows

    def ratios(self, ours: str) -> dict[str, float]:
        """Each peer's time over one of ours."""
        return {who: ms / self.ms[ours] for who, ms in self.ms.items() if not who.startswith("jaxmlip")}

    def result(self) -> dict[str, Any]:
        """The numbers, for JSON; ratios are a peer's time over ours."""
        return {
            "ratio": self.ratios("jaxmlip"),
            "ms": self.ms,
            "fastest_ms": self.fastest_ms,
            "compile_s": {who: said["first_s"] for who, said in self.first.items()},
            "peak_MiB": self.peak_MiB,
            "xla_temporary_MiB": self.first["jaxmlip"]["temporary_MiB"],
            "parameters": {who: said["parameters"] for who, said in self.first.items()},
            "same_weights": self.same_weights,
        }


def measure(
    programs: Mapping[str, tuple[Sequence[str], str]], peers: Sequence[str], order: Mapping[str, Any], calls: int
) -> Measured:
    """Start ours and the peers, and time their calls in turns.

    Args:
        programs: each contender's command and program.
        peers: those to be started.
        order: what `prepare` needs to know. Ours gets mace-torch's weights along with it where it can read them.
        calls: timed calls of each.
    """
    cpu = {"JAX_PLATFORMS": "cpu"}  # mace-torch runs there too
    started = [who for who in programs if who.startswith("jaxmlip") or who in peers]
    contenders = {who: Contender(who, *programs[who], cpu) for who in started}
    with tempfile.TemporaryDirectory() as folder:
        weights = weights_for_us(contenders, folder, order)
        first = {
            who: contender.ask("prepare", "task", weights=weights, **order) for who, contender in contenders.items()
        }
    times = interleaved(contenders, "task", calls, warm_up=3)  # torch's compiler is done after two calls
    return Measured(
        first=first,
        ms={who: median_ms(times[who]) for who in started},
        fastest_ms={who: 1e3 * min(times[who]) for who in started},
        peak_MiB={who: contenders[who].ask("call", "task")["peak_MiB"] for who in started},
        same_weights=weights is not None,
    )


def weights_for_us(contenders: Mapping[str, Contender], folder: str, order: Mapping[str, Any]) -> str | None:
    """A file to which mace-torch has written its weights; None if it is not there, or the project cannot read them."""
    potentials = REPOSITORY / "jaxmlip" / "potentials"
    readable = all((potentials / module).exists() for module in ("mace.py", "mace_checkpoint.py"))
    if "mace-torch" not in contenders or not readable:
        return None
    path = str(Path(folder) / "weights.npz")
    extractor = str(potentials / "mace_checkpoint.py")
    contenders["mace-torch"].ask("hand_over", "weights", path=path, extractor=extractor, **order)
    return path


def peer_command(python: str | None, *requirements: str) -> list[str]:
    """The interpreter given, or one in an environment that uv makes of the requirements."""
    if python:
        return [python]
    return ["uv", "run", "--no-project", *(part for name in requirements for part in ("--with", name)), "python"]


def mace_command(python: str | None) -> list[str]:
    """An interpreter with mace-torch."""
    return peer_command(python, "mace-torch==0.3.16", "torch")


def mlip_command(python: str | None) -> list[str]:
    """An interpreter with mlip; jax 0.10.2 miscompiles on CPU."""
    return peer_command(python, "mlip==0.2.5", "jax<0.10.2")


def in_project(program: str) -> Any:
    """What a program that prints JSON says in the project's environment."""
    command = [*OURS_COMMAND, "-W", "ignore", "-c", program]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=_outside())
    if result.returncode:
        sys.exit("The structures could not be made; the message stands above.")
    return json.loads(result.stdout)


def ice(molecules: int) -> dict[str, Any]:
    """Proton-disordered ice Ih with thermal displacements, and its mean number of neighbours within 5 Å."""
    return in_project(
        "import json; from ase.neighborlist import neighbor_list; from jaxmlip.systems.ice import ice_ih\n"
        f"a = ice_ih({molecules}, seed=0); a.rattle(0.05, seed=0)\n"
        "print(json.dumps({'numbers': a.numbers.tolist(), 'positions': a.positions.tolist(), 'cell': a.cell.tolist(),"
        " 'neighbors': len(neighbor_list('i', a, 5.0)) / len(a)}))"
    )


def add_options(parser: argparse.ArgumentParser, *, channels: int, calls: int) -> None:
    """Options that all benchmarks of the equivariant potential have."""
    parser.add_argument("--channels", type=int, default=channels, help=f"features of each l; {channels} by default")
    parser.add_argument("--L", type=int, choices=(0, 1), default=0, help="largest l of messages between layers")
    parser.add_argument("--calls", type=int, default=calls, help=f"timed calls of each; {calls} by default")
    parser.add_argument("--cores", type=int, help="use so many cores; all by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--out", type=Path, help="folder for a table (Markdown) and a plot (PNG)")


def add_peers(parser: argparse.ArgumentParser, *peers: str) -> None:
    """Options that choose the peers and say where they are installed."""
    parser.add_argument("--peers", nargs="*", choices=peers, default=peers, help="all by default")
    parser.add_argument("--mace-python", help="interpreter with mace-torch; by default uv makes one")
    parser.add_argument("--mlip-python", help="interpreter with mlip and jax<0.10.2; by default uv makes one")


def use_cores(number: int | None) -> int:
    """Confine this process and all it starts to so many cores; returns how many there are to use."""
    if not hasattr(os, "sched_setaffinity"):
        if number is not None:
            sys.exit("--cores needs an operating system that can confine a process to cores, such as Linux.")
        return os.cpu_count() or 1
    available = sorted(os.sched_getaffinity(0))
    if number is not None:
        if not 1 <= number <= len(available):
            sys.exit(f"--cores is {number}, but this process may use 1 to {len(available)}.")
        available = available[:number]
        os.sched_setaffinity(0, available)
    return len(available)


def machine(cores: int) -> dict[str, Any]:
    """Operating system, model of the processor, number of cores used, and the load the machine already has."""
    model, information = platform.processor(), Path("/proc/cpuinfo")
    if information.exists():
        names = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {"platform": platform.platform(), "cpu": model, "cores": cores, "busy_before": busy_cores()}


def busy_cores() -> float:
    """Number of cores at work over one second, on average; 0 where the operating system does not count."""
    counted = Path("/proc/stat")
    if not counted.exists():
        return 0.0

    def worked() -> float:
        user, nice, system = map(int, counted.read_text().split(maxsplit=4)[1:4])
        return (user + nice + system) / os.sysconf("SC_CLK_TCK")

    before = worked()
    time.sleep(1.0)
    return worked() - before


def describe(here: Mapping[str, Any]) -> str:
    """One line on a machine."""
    return f"{here['cpu']}, {here['cores']} core{'s' if here['cores'] > 1 else ''}"


def disturbance(here: Mapping[str, Any]) -> list[str]:
    """A warning if the machine was busy: threads that wait for one another, as torch's do, then lose most."""
    if here["busy_before"] < BUSY:
        return []
    return [
        f"The machine was busy before the benchmark began ({here['busy_before']:.1f} cores at work): times are too "
        "long, mace-torch's most of all, and ratios are not to be trusted."
    ]


def median_ms(times: Sequence[float]) -> float:
    """Median of some seconds, in milliseconds."""
    return 1e3 * statistics.median(times)


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in aligned columns: names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table in Markdown."""
    ruler = [":--", *("--:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ruler, *rows))


def write(folder: Path, name: str, title: str, above: Sequence[str], table: str, below: Sequence[str]) -> None:
    """A table in Markdown, with what is to be said of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text("\n\n".join([f"# {title}", *above, table, *below]) + "\n")


def bars(path: Path, title: str, ms: Mapping[str, float], quantity: str) -> None:
    """A bar for each contender's time, fastest on top, with its value and its ratio to ours."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted(ms, key=lambda name: ms[name], reverse=True)  # bars are drawn from below
    fig, ax = plt.subplots(figsize=(7, 1.3 + 0.45 * len(names)), layout="constrained")
    drawn = ax.barh(names, [ms[name] for name in names], color=[COLORS.get(name, "0.6") for name in names], height=0.6)
    labels = [f"{ms[name]:.0f} ms" + (f"  ({ms[name] / ms['jaxmlip']:.1f} ×)" * (name != "jaxmlip")) for name in names]
    ax.bar_label(drawn, labels, padding=4)
    ax.set(xlabel=f"{quantity} / ms (median; shorter is faster)", xlim=(0, 1.25 * max(ms.values())))
    ax.set_title(title, fontsize=10, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=160)
    plt.close(fig)
