# /// script
# requires-python = ">=3.11"
# dependencies = ["matplotlib>=3.9,<4"]
# ///
"""Langevin dynamics of replicas of ice Ih: the engine here against mlip's JAX-MD engine and torch-sim with mace-torch.

R replicas of 96 atoms for several R, and one of 768 atoms (or of others, with --large), with potentials of equal size
(2 layers, l_max 3, correlation 3, cutoff 5 Å, float32; ours and mace-torch's have the same weights where the project
can read them). What is timed is a block of steps, everything included: neighbour lists, forces, thermostat, and what
an engine hands to the host at the end. Beside the engines stand, for ours, the forces alone (the same replicas as one
batch, neighbour lists made beforehand), so that the difference is what the engine adds, and ASE's Langevin dynamics
with our calculator. Our engine runs twice: with the radial networks evaluated, as everyone else does, and with radial
functions in tables, as one would for a long simulation.

Random weights bind nothing: atoms fly. At the 10 K that all start from and are kept at they move between two
neighbour lists about as far as those of ice at 250 K. mlip's engine refuses cells narrower than two cutoffs, such as
those of 96 atoms: it takes part where one box is large. Usage:

    uv run experiments/benchmarks/replica_md.py [--channels 128] [--L 0] [--replicas 1 8 32 128]
        [--peer-replicas 1 8] [--large 768] [--steps 20] [--calls 5] [--cores N] [--json] [--out FOLDER]
        [--peers mlip torch-sim] [--mace-python PYTHON] [--mlip-python PYTHON]

Without --mace-python (an environment with mace-torch and torch-sim-atomistic) and --mlip-python, uv builds them.
"""

import argparse
import json
import tempfile
from pathlib import Path

from contenders import (
    COLORS,
    JAXMLIP_MODEL,
    MACE_MODEL,
    MLIP_MODEL,
    OURS_COMMAND,
    REPOSITORY,
    TABLES,
    TABULATED,
    Contender,
    add_options,
    add_peers,
    describe,
    disturbance,
    ice,
    interleaved,
    machine,
    markdown_table,
    median_ms,
    mlip_command,
    peer_command,
    plain_table,
    use_cores,
    write,
)

ATOMS = 96
CUTOFF = 5.0
TIMESTEP_FS = 0.5
ATOM_STEPS = 2000 * ATOMS
"""Atoms × steps in a call, beyond which calls have fewer steps."""

OURS = """
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.options import Options
from jaxmlip.simulation.session import make_session
def prepare(order):
    options = Options(
        steps=10**8, replicas=order["replicas"], sample_every_fs=0.5 * 10**8, on_failure="mark", watch_bonds=False
    )
    driver = make_session([build(order)], atoms_of(order["structure"]), NVT(10.0), options).driver
    driver.prepare()
    taken = [0]
    def call():
        taken[0] += order["steps"]
        driver.advance(taken[0])
        assert int(np.asarray(driver.walkers.step)) == taken[0] and not np.asarray(driver.walkers.failure).any()
    return call
def plain(name, result):
    return {}
"""

FORCES = """
from jaxmlip.potentials.potential import evaluate
from jaxmlip.systems.graph import batch_graphs, graph_from_atoms
def prepare(order):
    potential, atoms = build(order), atoms_of(order["structure"])
    graph = jax.device_put(batch_graphs([graph_from_atoms(atoms, potential.cutoff)] * order["replicas"]))
    call = jax.jit(lambda potential, graph: evaluate(potential, graph))
    def steps():
        for _ in range(order["steps"]):
            jax.block_until_ready(call(potential, graph))
    return steps
def plain(name, result):
    return {}
"""

ASE = """
from ase import units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from jaxmlip.potentials.ase import Calculator
def prepare(order):
    atoms = atoms_of(order["structure"])
    atoms.calc = Calculator(build(order))
    rng = np.random.default_rng(0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=10.0, rng=rng)
    dynamics = Langevin(atoms, 0.5 * units.fs, temperature_K=10.0, friction=0.002 / units.fs, rng=rng)
    return lambda: dynamics.run(order["steps"])
def plain(name, result):
    return {}
"""

MLIP = """
from mlip.simulation.jax_md import JaxMDSimulationEngine
def prepare(order):
    atoms, steps = atoms_of(order["structure"]), order["steps"]
    config = JaxMDSimulationEngine.Config(
        num_steps=steps, num_episodes=1, snapshot_interval=steps, timestep_fs=0.5, temperature_kelvin=10.0
    )
    start = atoms if order["replicas"] == 1 else [atoms.copy() for _ in range(order["replicas"])]
    engine = JaxMDSimulationEngine(start, build(order), config)
    def call():
        engine.run()
        jax.block_until_ready(engine._internal_state)
    return call
def plain(name, result):
    return {}
"""

TORCH_SIM = """
import torch_sim
from torch_sim.integrators import nvt_langevin
from torch_sim.models.mace import MaceModel
from torch_sim.units import MetalUnits
def prepare(order):
    model = MaceModel(build(order), device=torch.device("cpu"), dtype=torch.float32, compute_stress=False)
    for parameter in model.parameters():
        parameter.requires_grad = False
    start = [atoms_of(order["structure"]) for _ in range(order["replicas"])]
    state = torch_sim.io.atoms_to_state(start, torch.device("cpu"), torch.float32)
    kT = torch.tensor(10.0 * MetalUnits.temperature)
    begin, update = nvt_langevin(model, dt=torch.tensor(0.0005 * MetalUnits.time), kT=kT)
    states = [begin(state, seed=0)]
    def call():
        for _ in range(order["steps"]):
            states[0] = update(states[0])
    return call
def plain(name, result):
    return {}
"""

OURS_NAME, FORCES_NAME, ASE_NAME = "jaxmlip", "jaxmlip, forces alone", "jaxmlip, ASE"


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description="Replicas of ice Ih: jaxmlip's engine against others")
    add_options(parser, channels=128, calls=5)
    add_peers(parser, "mlip", "torch-sim")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 8, 32, 128], help="1 8 32 128 by default")
    parser.add_argument(
        "--peer-replicas", type=int, nargs="*", default=[1, 8], help="those that the peers simulate; 1 8 by default"
    )
    parser.add_argument("--large", type=int, nargs="+", default=[768], help="atoms of single boxes; 768 by default")
    parser.add_argument("--steps", type=int, default=20, help="of a call, fewer of many replicas; 20 by default")
    options = parser.parse_args()
    here = machine(use_cores(options.cores))

    torch_sim = peer_command(options.mace_python, "mace-torch==0.3.16", "torch", "torch-sim-atomistic==0.3.0")
    programs = {
        OURS_NAME: (OURS_COMMAND, JAXMLIP_MODEL + OURS),
        TABLES: (OURS_COMMAND, JAXMLIP_MODEL + TABULATED + OURS),
        FORCES_NAME: (OURS_COMMAND, JAXMLIP_MODEL + FORCES),
        ASE_NAME: (OURS_COMMAND, JAXMLIP_MODEL + ASE),
        "mlip": (mlip_command(options.mlip_python), MLIP_MODEL + MLIP),
        "torch-sim": (torch_sim, MACE_MODEL + TORCH_SIM),
    }
    started = [who for who in programs if who.startswith("jaxmlip") or who in options.peers]
    environment = {"JAX_PLATFORMS": "cpu"} if "torch-sim" in started or "mlip" in started else {}
    contenders = {who: Contender(who, *programs[who], environment) for who in started}
    boxes = {atoms: ice(atoms // 3) for atoms in (ATOMS, *options.large)}
    tasks = [(replicas, ATOMS) for replicas in options.replicas] + [(1, atoms) for atoms in options.large]
    order = {"channels": options.channels, "L": options.L}
    ms: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = _weights(contenders, folder, order | {"neighbors": boxes[ATOMS]["neighbors"]})
        for replicas, atoms in tasks:
            task = f"{replicas} × {atoms}"
            steps = max(1, min(options.steps, ATOM_STEPS // (replicas * atoms)))
            those = {who: each for who, each in contenders.items() if _takes_part(who, replicas, boxes[atoms], options)}
            for contender in those.values():
                more = {"structure": boxes[atoms], "neighbors": boxes[ATOMS]["neighbors"], "replicas": replicas}
                contender.ask("prepare", task, weights=weights, steps=steps, **more, **order)
            times = interleaved(those, task, options.calls, warm_up=1)
            ms[task] = {who: median_ms(times[who]) / steps for who in those}

    header = ["contender", "replicas × atoms", "ms per step", "replica-steps/s", "ns/day", "ratio"]
    rows = []
    for replicas, atoms in tasks:
        found = ms[f"{replicas} × {atoms}"]
        for who, each in found.items():
            speed = 1e3 * replicas / each
            numbers = [f"{each:.3g}", f"{speed:.3g}", f"{speed * TIMESTEP_FS * 86400e-6:.3g}"]
            rows.append([who, f"{replicas} × {atoms}", *numbers, f"{each / found[OURS_NAME]:.2f}"])
    overhead = {task: found[OURS_NAME] / found[FORCES_NAME] - 1.0 for task, found in ms.items()}
    notes = [
        f"Langevin dynamics of ice Ih, {options.channels} channels, L = {options.L}, float32; steps of {TIMESTEP_FS} "
        f"fs, median of {options.calls} calls, ns/day of all replicas together.",
        describe(here),
    ]
    said = "What the engine and its neighbour lists add to the forces: "
    notes.append(said + ", ".join(f"{task}: {100 * share:.0f} %" for task, share in overhead.items()) + ".")
    eight, as_one = ms.get(f"8 × {ATOMS}"), ms.get(f"1 × {8 * ATOMS}")
    batching = None
    if eight and as_one:
        batching = eight[OURS_NAME] / as_one[FORCES_NAME]
        notes.append(f"A step of 8 replicas of {ATOMS} atoms takes {batching:.2f} force calls of {8 * ATOMS} atoms.")
    for who in options.peers:
        tables = {task: found[who] / found[TABLES] for task, found in ms.items() if who in found}
        said = ", ".join(f"{task}: {ratio:.1f}" for task, ratio in tables.items())
        notes.append(f"{who} takes this many times as long as {TABLES}: {said}.")
    notes += disturbance(here)
    print("\n".join([*notes[:2], "", plain_table(header, rows), "", *notes[2:]]))
    if options.out:
        name = f"replica_md_{options.channels}_L{options.L}"
        write(options.out, name, "Replicas", notes[:2], markdown_table(header, rows), notes[2:])
        _plot(options.out / f"{name}.png", ms, options.replicas, notes[0], describe(here))
    if options.json:
        peers = {
            task: {w: t / found[OURS_NAME] for w, t in found.items() if w in options.peers}
            for task, found in ms.items()
        }
        result = {"ratio": peers, "ms_per_step": ms, "overhead": overhead, "eight_over_large": batching}
        print(json.dumps(result | {"same_weights": weights is not None, "machine": here} | order))


def _takes_part(who: str, replicas: int, box: dict, options: argparse.Namespace) -> bool:
    """Whether a contender has this task: ASE has one replica only, and peers would take hours for many."""
    atoms, lengths = len(box["numbers"]), [sum(x**2 for x in vector) ** 0.5 for vector in box["cell"]]
    if who == ASE_NAME:
        return replicas == 1
    if who == "mlip" and min(lengths) < 2.0 * CUTOFF:
        return False
    return who.startswith("jaxmlip") or (replicas in options.peer_replicas and atoms <= 8 * ATOMS)


def _weights(contenders: dict[str, Contender], folder: str, order: dict) -> str | None:
    """A file with mace-torch's weights, for ours to be the same function."""
    if "torch-sim" not in contenders:
        return None
    path = str(Path(folder) / "weights.npz")
    extractor = str(REPOSITORY / "jaxmlip" / "potentials" / "mace_checkpoint.py")
    contenders["torch-sim"].ask("hand_over", "weights", path=path, extractor=extractor, **order)
    return path


def _plot(path: Path, ms: dict[str, dict[str, float]], replicas: list[int], title: str, where: str) -> None:
    """Replica-steps per second against the number of replicas."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    colors = COLORS | {"torch-sim": COLORS["mace-torch"], FORCES_NAME: "0.6", ASE_NAME: "#CC79A7"}
    for who in dict.fromkeys(who for found in ms.values() for who in found):
        points = [(r, 1e3 * r / ms[f"{r} × {ATOMS}"][who]) for r in replicas if who in ms[f"{r} × {ATOMS}"]]
        if points:
            ax.plot(*zip(*points, strict=True), "o-", label=who, color=colors[who])
    ax.set(xscale="log", yscale="log", xlabel=f"replicas of {ATOMS} atoms", ylabel="replica-steps per second")
    ax.set_xticks(replicas, [str(each) for each in replicas])
    ax.minorticks_off()
    ax.set_title(f"{title.partition(';')[0]}\n{where}", fontsize=10, loc="left")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=160)
    plt.close(fig)


if __name__ == "__main__":
    main()
