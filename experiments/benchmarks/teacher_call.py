# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=2,<3"]
# ///
"""CHGNet here against the `chgnet` package: energy, forces and stress of ice Ih of 96 and 384 atoms.

Each contender lives in a process of its own, with its own environment, and has all cores while it is at work; calls
alternate, so that whatever else the machine does hits both alike. Graphs (neighbour lists) are made beforehand for
both: what is compared is the potential. Usage:

    uv run experiments/benchmarks/teacher_call.py [--peer-python PYTHON] [--calls 9] [--json]

Without --peer-python, uv builds the peer's environment (`chgnet` with torch); give the interpreter of an environment
that has both where only a certain build of torch can be installed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

OURS = """
import json, sys, time
import jax, numpy as np
from ase import Atoms
from jaxmlip.potentials.chgnet import load_chgnet
from jaxmlip.potentials.potential import evaluate
from jaxmlip.systems.graph import graph_from_atoms
from jaxmlip.units import GPA
potential = jax.device_put(load_chgnet("gga"))
call = jax.jit(lambda potential, graph: evaluate(potential, graph, stress=True))
def prepare(atoms):
    graph = jax.device_put(graph_from_atoms(atoms, potential.cutoff, potential.inner_cutoff))
    return lambda: jax.block_until_ready(call(potential, graph))
def plain(result):
    return np.asarray(result.forces).tolist()
"""

PEER = """
import json, sys, time
import torch, numpy as np
from ase import Atoms
from chgnet.model import CHGNet
from pymatgen.io.ase import AseAtomsAdaptor
potential = CHGNet.load(model_name="0.3.0", use_device="cpu", verbose=False)
def prepare(atoms):
    graph = potential.graph_converter(AseAtomsAdaptor.get_structure(atoms))
    return lambda: potential.predict_graph(graph, task="efs")
def plain(result):
    return np.asarray(result["f"]).tolist()
"""

WORKER = """
calls = {}
for line in sys.stdin:
    order = json.loads(line)
    if "structure" in order:
        s = order["structure"]
        calls[order["name"]] = prepare(Atoms(s["numbers"], s["positions"], cell=s["cell"], pbc=True))
        start = time.perf_counter()
        result = calls[order["name"]]()
        answer = {"first_s": time.perf_counter() - start, "forces": plain(result)}
    else:
        start = time.perf_counter()
        calls[order["name"]]()
        answer = {"s": time.perf_counter() - start}
    print("answer " + json.dumps(answer), flush=True)
"""


class Contender:
    """A worker process that prepares and times calls on request."""

    def __init__(self, command: list[str], program: str) -> None:
        """Start the process."""
        environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
        self.process = subprocess.Popen(
            [*command, "-W", "ignore", "-c", program + WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=REPOSITORY,
        )

    def ask(self, **order) -> dict:
        """Send an order and wait for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        sys.exit("A contender ended before it answered; its message stands above.")


def ice(molecules: int) -> dict:
    """Proton-disordered ice Ih with thermal displacements, made in the project's environment."""
    program = (
        "import json; from jaxmlip.systems.ice import ice_ih\n"
        f"a = ice_ih({molecules}, seed=0); a.rattle(0.05, seed=0)\n"
        "print(json.dumps({'numbers': a.numbers.tolist(), 'positions': a.positions.tolist(), 'cell': a.cell.tolist()}))"
    )
    command = ["uv", "run", "--project", str(REPOSITORY), "python", "-c", program]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description="CHGNet in JAX against the chgnet package")
    parser.add_argument("--peer-python", help="interpreter with chgnet and torch; by default uv makes one")
    parser.add_argument("--calls", type=int, default=9, help="timed calls of each contender and structure")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    uv_peer = ["uv", "run", "--no-project", "--with", "chgnet>=0.4.2,<0.5", "--with", "torch", "python"]
    contenders = {
        "jaxmlip": Contender(["uv", "run", "--project", str(REPOSITORY), "python"], OURS),
        "chgnet": Contender([options.peer_python] if options.peer_python else uv_peer, PEER),
    }
    ratios = {}
    print(f"{'atoms':>6} {'jaxmlip ms':>11} {'chgnet ms':>10} {'ratio':>6} {'first call s':>15} {'|ΔF| max eV/Å':>14}")
    for molecules in (32, 128):
        name, structure = str(3 * molecules), ice(molecules)
        first = {who: contender.ask(name=name, structure=structure) for who, contender in contenders.items()}
        for contender in contenders.values():
            contender.ask(name=name)
        times: dict[str, list[float]] = {who: [] for who in contenders}
        for _ in range(options.calls):
            for who, contender in contenders.items():
                times[who].append(contender.ask(name=name)["s"])
        ours, peer = (1e3 * statistics.median(times[who]) for who in ("jaxmlip", "chgnet"))
        difference = max(
            abs(a - b)
            for row, other in zip(first["jaxmlip"]["forces"], first["chgnet"]["forces"], strict=True)
            for a, b in zip(row, other, strict=True)
        )
        ratios[name] = {"jaxmlip_ms": ours, "chgnet_ms": peer, "ratio": peer / ours, "force_difference": difference}
        compile_s = f"{first['jaxmlip']['first_s']:.1f} / {first['chgnet']['first_s']:.1f}"
        print(f"{name:>6} {ours:>11.0f} {peer:>10.0f} {peer / ours:>6.2f} {compile_s:>15} {difference:>14.1e}")
    if options.json:
        print(json.dumps(ratios))


if __name__ == "__main__":
    main()
