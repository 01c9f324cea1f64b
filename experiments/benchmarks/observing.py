# /// script
# requires-python = ">=3.11"
# dependencies = ["matplotlib>=3.9,<4"]
# ///
"""What it costs to look: Langevin dynamics of ice Ih with and without radial distribution functions on the way.

Replicas of 96 atoms; g_OO, g_OH and g_HH to 6 Å in 120 bins are averaged every 10 fs, with energy and temperature, in
the loop that moves the atoms. Beside it stand one that looks at nothing, and one that also compares with a second
potential of the same size. Random weights bind nothing; at 10 K atoms move little. Usage:

    uv run experiments/benchmarks/observing.py [--channels 32] [--L 0] [--replicas 32] [--steps 40] [--calls 5]
        [--cores N] [--json] [--out FOLDER]
"""

import argparse
import json

from contenders import (
    JAXMLIP_MODEL,
    OURS_COMMAND,
    Contender,
    add_options,
    describe,
    disturbance,
    ice,
    interleaved,
    machine,
    markdown_table,
    median_ms,
    plain_table,
    use_cores,
    write,
)

PROGRAM = """
from jaxmlip.observables.structure import RDF
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.simulation.options import Options
from jaxmlip.simulation.session import make_session
def prepare(order):
    pairs, potential, frames = (("O", "O"), ("O", "H"), ("H", "H")), build(order), 2 * 10**6
    looks = {"observables": [RDF(*pair) for pair in pairs], "observe_every_fs": 10.0} if order["looks"] else {}
    looks |= {"against": potential} if order["against"] else {}
    options = Options(
        steps=frames, replicas=order["replicas"], sample_every_fs=0.5 * frames, on_failure="mark", watch_bonds=False,
        **looks
    )
    session = make_session([potential], atoms_of(order["structure"]), NVT(10.0), options)
    driver, taken = session.driver, [0]
    driver.prepare()
    def call():
        taken[0] += order["steps"]
        driver.advance(taken[0])
        if order["looks"]:
            jax.device_get(driver.means)
            driver.forget()
        assert int(np.asarray(driver.walkers.step)) == taken[0] and not np.asarray(driver.walkers.failure).any()
    return call
def plain(name, result):
    return {}
"""

WAYS = {
    "no look": {"looks": False, "against": False},
    "three RDFs": {"looks": True, "against": False},
    "three RDFs, second potential": {"looks": True, "against": True},
}


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description="Dynamics of ice Ih, observed on the way and not")
    add_options(parser, channels=32, calls=5)
    parser.add_argument("--replicas", type=int, default=32, help="of 96 atoms; 32 by default")
    parser.add_argument("--steps", type=int, default=40, help="of a call, each 0.5 fs; 40 by default")
    options = parser.parse_args()
    here = machine(use_cores(options.cores))
    box = ice(32)
    contenders = {way: Contender(way, OURS_COMMAND, JAXMLIP_MODEL + PROGRAM) for way in WAYS}
    for way, contender in contenders.items():
        order = {"channels": options.channels, "L": options.L, "replicas": options.replicas, "steps": options.steps}
        contender.ask("prepare", "run", structure=box, neighbors=box["neighbors"], **order, **WAYS[way])
    times = interleaved(contenders, "run", options.calls, warm_up=1)
    ms = {way: median_ms(each) / options.steps for way, each in times.items()}
    costs = {way: each / ms["no look"] - 1.0 for way, each in ms.items()}
    rows = [[way, f"{ms[way]:.3g}", f"{100 * costs[way]:+.1f} %"] for way in WAYS]
    note = (
        f"{options.replicas} × 96 atoms of ice Ih, {options.channels} channels, L = {options.L}, a look every 10 fs; "
        f"median of {options.calls} calls of {options.steps} steps."
    )
    header = ["", "ms per step", "cost"]
    print("\n".join([note, describe(here), "", plain_table(header, rows), *disturbance(here)]))
    if options.out:
        notes = [note, describe(here)]
        write(options.out, "observing", "Observing", notes, markdown_table(header, rows), disturbance(here))
    if options.json:
        print(json.dumps({"ms_per_step": ms, "cost": costs, "machine": here}))


if __name__ == "__main__":
    main()
