# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=2,<3", "matplotlib>=3.9,<4"]
# ///
"""Energy and forces of ice Ih: the equivariant potential here against mace-torch, mlip and jax-md's NequIP.

All potentials of the MACE family have the same sizes (2 layers, l_max 3, correlation 3, cutoff 5 Å, float32); where the
project can read mace-torch's weights, both compute the same function, and the output says how well they agree. Ours
appears twice: with its radial networks evaluated, as everyone else does, and with its radial functions in tables
(`jaxmlip tabulate`), as one would use it in a long simulation. NequIP is another architecture and stands beside them
for scale. Each contender lives in a process of its own, with its own
environment, and has all cores while it is at work; calls alternate, so that whatever else the machine does hits all
alike. Graphs (neighbour lists) are made beforehand for all: what is compared is the potential. Beside our times stands
the share of the rate at which the machine multiplies float32 matrices, measured before and after. Usage:

    uv run experiments/benchmarks/force_call.py [--channels 128] [--L 0] [--atoms 384] [--calls 9] [--cores N] [--json]
        [--tolerance T] [--out FOLDER] [--peers mlip mace-torch jax-md] [--mace-python PYTHON] [--mlip-python PYTHON]
        [--reference RESULT.json]...

Without --mace-python and --mlip-python, uv builds the peers' environments; give the interpreters of environments that
have them where only certain builds can be installed. A reference is the last line of an earlier run with --json, of
another revision or machine say, which is shown beside this one's.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from contenders import (
    JAXMLIP_MODEL,
    MACE_MODEL,
    MLIP_MODEL,
    OURS_COMMAND,
    TABLES,
    TABULATED,
    Measured,
    add_options,
    add_peers,
    bars,
    describe,
    disturbance,
    ice,
    in_project,
    mace_command,
    machine,
    markdown_table,
    measure,
    mlip_command,
    plain_table,
    use_cores,
    write,
)

OURS = """
from jaxmlip.potentials.potential import evaluate
from jaxmlip.systems.graph import graph_from_atoms
facts = {}
def prepare(order):
    potential = build(order)
    graph = jax.device_put(graph_from_atoms(atoms_of(order["structure"]), potential.cutoff))
    compiled = []
    def call():
        if not compiled:
            jitted = jax.jit(lambda potential, graph: evaluate(potential, graph))
            compiled.append(jitted.lower(potential, graph).compile())
            temporary = compiled[0].memory_analysis().temp_size_in_bytes
            facts.update(parameters=count(potential.params), temporary_MiB=temporary / 2**20)
            # Counted where all atoms are computed at once: XLA counts the body of a loop over blocks as one block.
            whole = jitted.lower(potential.replace(form="accelerator"), graph).compile().cost_analysis()
            facts.update(GFLOP=1e-9 * whole["flops"])
        return jax.block_until_ready(compiled[0](potential, graph))
    return call
def plain(name, result):
    return {"energy": float(result.energy[0]), "forces": np.asarray(result.forces).tolist(), **facts}
"""

MACE = """
def prepare(order):
    model, batch = build(order), graph([order["structure"]])
    for parameter in model.parameters():  # as its ASE calculator does: only the gradient by positions is wanted
        parameter.requires_grad = False
    return lambda: model(batch, training=False, compute_force=True)
def plain(name, result):
    return {
        "energy": result["energy"].item(), "forces": result["forces"].tolist(), "parameters": count(models[name])
    }
"""

MLIP = """
facts = {}
def prepare(order):
    force_field, inputs = build(order), graph([order["structure"]])
    params = jax.device_put(force_field.params)
    call = jax.jit(lambda params, graph: force_field.predictor.apply(params, graph).to_prediction())
    facts.update(parameters=count(params))
    return lambda: jax.block_until_ready(call(params, inputs))
def plain(name, result):
    return {"energy": float(result.energy[0]), "forces": np.asarray(result.forces).tolist(), **facts}
"""

NEQUIP = """
import e3nn_jax, jax, jax.numpy as jnp, jraph, numpy as np
from ase.neighborlist import neighbor_list
from jax_md._nn import nequip
facts = {}
def prepare(order):
    atoms, channels = atoms_of(order["structure"]), order["channels"]
    config = nequip.default_config()
    config.update(
        graph_net_steps=2, n_elements=2, hidden_irreps=f"{channels}x0e + {channels}x1o + {channels}x2e",
        sh_irreps="1x0e + 1x1o + 1x2e", r_max=5.0, radial_net_n_layers=3, n_neighbors=order["neighbors"], scale=1.0,
        shift=0.0,
    )
    model = nequip.model_from_config(config)
    # The edges come from a list made beforehand, without the padding that jax_md's own featurizer adds.
    receivers, senders, shifts = neighbor_list("ijS", atoms, 5.0)
    translations = jnp.asarray(shifts @ atoms.cell.array, jnp.float32)
    species = jnp.asarray(atoms.numbers[:, None] == np.array([1, 8]), jnp.float32)
    inputs = jraph.GraphsTuple(
        nodes=species, edges=None, globals=None, senders=jnp.asarray(senders), receivers=jnp.asarray(receivers),
        n_node=jnp.array([len(atoms)]), n_edge=jnp.array([len(senders)]),
    )
    positions = jnp.asarray(atoms.positions, jnp.float32)
    def energy(positions, params):
        edges = positions[inputs.senders] + translations - positions[inputs.receivers]
        return model.apply(params, inputs._replace(edges=edges))[0, 0]
    edges = positions[inputs.senders] + translations - positions[inputs.receivers]
    params = jax.jit(model.init)(jax.random.key(0), inputs._replace(edges=edges))
    facts.update(parameters=sum(np.size(leaf) for leaf in jax.tree.leaves(params)))
    call = jax.jit(jax.value_and_grad(energy))
    return lambda: jax.block_until_ready(call(positions, params))
def plain(name, result):
    return {"energy": float(result[0]), "forces": np.asarray(-result[1]).tolist(), **facts}
"""


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description="Energy and forces: jaxmlip against other packages, on the CPU")
    add_options(parser, channels=128, calls=9)
    add_peers(parser, "mlip", "mace-torch", "jax-md")
    parser.add_argument("--atoms", type=int, default=384, help="atoms of ice, a multiple of 24; 384 by default")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="of our radial tables; 1e-5 by default")
    parser.add_argument(
        "--reference", type=Path, action="append", default=[], metavar="RESULT.json", help="result of an earlier run"
    )
    options = parser.parse_args()
    if options.atoms % 24:
        parser.error(f"--atoms is {options.atoms}, but boxes of ice Ih hold multiples of 24.")
    references = {path: read_result(parser, path) for path in options.reference}
    here = machine(use_cores(options.cores))
    structure = ice(options.atoms // 3)

    programs = {
        "jaxmlip": (OURS_COMMAND, JAXMLIP_MODEL + OURS),
        TABLES: (OURS_COMMAND, JAXMLIP_MODEL + TABULATED + OURS),
        "mlip": (mlip_command(options.mlip_python), MLIP_MODEL + MLIP),
        "mace-torch": (mace_command(options.mace_python), MACE_MODEL + MACE),
        "jax-md": (OURS_COMMAND, NEQUIP),
    }
    order = {"structure": structure, "channels": options.channels, "L": options.L, "neighbors": structure["neighbors"]}
    order["tolerance"] = options.tolerance
    rates = [matrix_gflops()]
    measured = measure(programs, options.peers, order, options.calls)
    rates.append(matrix_gflops())

    header, rows = measured.header("call"), measured.rows()
    for path, result in references.items():
        for who, value in result["ms"].items():
            ratio = f"{value / measured.ms['jaxmlip']:.2f}"
            rows.append([f"{who} ({path.stem})", f"{value:.0f}", "–", ratio, *["–"] * 4])
    task = f"ice Ih of {options.atoms} atoms, {options.channels} channels, L = {options.L}, float32"
    notes = [f"Energy and forces of {task}; median of {options.calls} calls.", describe(here)]
    difference = {}
    if measured.same_weights:
        notes.append("Ours have mace-torch's weights; largest differences from its result:")
        for ours in (TABLES, "jaxmlip"):
            difference[ours] = found = differences(measured.first[ours], measured.first["mace-torch"])
            notes[-1] += f" {ours} {found['energy_eV_atom']:.1e} eV/atom and {found['forces_eV_A']:.1e} eV/Å" + (
                ";" if ours == TABLES else f" (largest force {found['largest_force_eV_A']:.2g} eV/Å)."
            )
    else:
        notes.append("jaxmlip has random weights of its own: its values cannot be compared with mace-torch's here.")
    of_rate = fractions(measured, max(rates))
    notes.append(f"A product of two float32 matrices of 2048² runs at {max(rates):.0f} GFLOP/s here by jax.")
    notes += [
        f"{who}: {each['GFLOP']:.2g} GFLOP at {each['GFLOP_s']:.0f} GFLOP/s, {each['of_matrix_rate']:.0%} of that rate."
        for who, each in of_rate.items()
    ]
    if "jax-md" in measured.ms:
        notes.append(
            "jax-md is NequIP: as many channels, l ≤ 2 for messages and harmonics alike, 2 layers, radial network of "
            "3 × 64; no products of features, and messages of l ≤ 2 whatever L is."
        )
    for path, result in references.items():
        notes.append(
            f"{path.stem}: {result['atoms']} atoms, {result['channels']} channels, L = {result['L']}, on "
            f"{describe(result['machine'])}."
        )
    notes += disturbance(here)
    print("\n".join([*notes[:2], "", plain_table(header, rows), "", *notes[2:]]))
    if options.out:
        name = f"force_call_{options.channels}_L{options.L}"
        write(options.out, name, "Energy and forces", notes[:2], markdown_table(header, rows), notes[2:])
        title = f"Energy and forces of {task}\n{describe(here)}"
        bars(options.out / f"{name}.png", title, measured.ms, "time of a call")
    if options.json:
        task = {"channels": options.channels, "L": options.L, "atoms": options.atoms, "calls": options.calls}
        more = {"ratio": measured.ratios(TABLES), "ratio_networks": measured.ratios("jaxmlip")}
        more |= {"tolerance": options.tolerance, "difference": difference}
        more |= {"matrix_GFLOP_s": rates, "of_matrix_rate": of_rate}
        print(json.dumps(measured.result() | more | task | {"machine": here}))


def read_result(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    """The last line of an earlier run's output, or a file of it alone."""
    try:
        result = json.loads(path.read_text().strip().splitlines()[-1])
        missing = {"ms", "atoms", "channels", "L", "machine"} - result.keys()
    except (OSError, IndexError, ValueError, AttributeError) as error:
        parser.error(f"{path} is no result of this benchmark: {error}")
    if missing:
        parser.error(f"{path} is no result of this benchmark: it has no {', '.join(sorted(missing))}.")
    return result


def matrix_gflops(size: int = 2048, calls: int = 12) -> float:
    """Best rate at which jax multiplies float32 matrices on all cores there are to use, GFLOP/s."""
    return in_project(
        "import time; import jax, jax.numpy as jnp\n"
        f"a = jnp.ones(({size}, {size}), jnp.float32); product = jax.jit(jnp.matmul); times = []\n"
        f"for _ in range({calls}):\n"
        "    start = time.perf_counter(); product(a, a).block_until_ready()\n"
        "    times.append(time.perf_counter() - start)\n"
        f"print(2e-9 * {size}**3 / min(times))"
    )


def fractions(measured: Measured, rate: float) -> dict[str, dict[str, float]]:
    """Operations of our calls as XLA counts them, their rate, and what share that is of the rate of matrix products."""
    found = {}
    for who, said in measured.first.items():
        if "GFLOP" in said:
            at = 1e3 * said["GFLOP"] / measured.ms[who]
            found[who] = {"GFLOP": said["GFLOP"], "GFLOP_s": at, "of_matrix_rate": at / rate}
    return found


def differences(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, float]:
    """Largest differences of two first calls."""
    forces, others = np.array(ours["forces"]), np.array(peer["forces"])
    return {
        "energy_eV_atom": abs(ours["energy"] - peer["energy"]) / len(forces),
        "forces_eV_A": float(np.abs(forces - others).max()),
        "largest_force_eV_A": float(np.abs(others).max()),
    }


if __name__ == "__main__":
    main()
