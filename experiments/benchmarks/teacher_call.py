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

from contenders import OURS_COMMAND, Contender, ice, interleaved, median_ms, peer_command

OURS = """
import jax, numpy as np
from jaxmlip.potentials.chgnet_checkpoint import load_chgnet
from jaxmlip.potentials.potential import evaluate
from jaxmlip.systems.graph import graph_from_atoms
from jaxmlip.units import GPA
potential = jax.device_put(load_chgnet("gga"))
call = jax.jit(lambda potential, graph: evaluate(potential, graph, stress=True))
def prepare(order):
    graph = jax.device_put(graph_from_atoms(atoms_of(order["structure"]), potential.cutoff, potential.inner_cutoff))
    return lambda: jax.block_until_ready(call(potential, graph))
def plain(name, result):
    return {"forces": np.asarray(result.forces).tolist()}
"""

PEER = """
import numpy as np
from chgnet.model import CHGNet
from pymatgen.io.ase import AseAtomsAdaptor
potential = CHGNet.load(model_name="0.3.0", use_device="cpu", verbose=False)
def prepare(order):
    graph = potential.graph_converter(AseAtomsAdaptor.get_structure(atoms_of(order["structure"])))
    return lambda: potential.predict_graph(graph, task="efs")
def plain(name, result):
    return {"forces": np.asarray(result["f"]).tolist()}
"""


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description="CHGNet in JAX against the chgnet package")
    parser.add_argument("--peer-python", help="interpreter with chgnet and torch; by default uv makes one")
    parser.add_argument("--calls", type=int, default=9, help="timed calls of each contender and structure")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    command = peer_command(options.peer_python, "chgnet>=0.4.2,<0.5", "torch")
    contenders = {"jaxmlip": Contender("jaxmlip", OURS_COMMAND, OURS), "chgnet": Contender("chgnet", command, PEER)}
    ratios = {}
    print(f"{'atoms':>6} {'jaxmlip ms':>11} {'chgnet ms':>10} {'ratio':>6} {'first call s':>15} {'|ΔF| max eV/Å':>14}")
    for molecules in (32, 128):
        name, structure = str(3 * molecules), ice(molecules)
        first = {who: contender.ask("prepare", name, structure=structure) for who, contender in contenders.items()}
        times = interleaved(contenders, name, options.calls)
        ours, peer = median_ms(times["jaxmlip"]), median_ms(times["chgnet"])
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
