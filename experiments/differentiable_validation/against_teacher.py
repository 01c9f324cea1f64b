"""What is said of students without their teacher's simulation, held against that simulation.

Two were trained by `experiments/clusters_to_bulk/quick.yaml` on clusters of ice, one on energies and forces, one on
energies only; the third is the teacher distilled (`make_student.py`). Each is simulated in bulk ice and validated
twice: without a simulation of the teacher, where the ladder has to do with the student's frames, and with one. Then:
do the ladder's numbers agree with the teacher's own, where it gave some; does linear response predict sign and size
of what is off; and which atoms, motions and distances spoil it?
Run again to go on where it was. Usage:

    uv run python experiments/differentiable_validation/against_teacher.py [--time-ps 0.5] [--replicas 4]
        [--ensemble nvt|npt] [--molecules 32] [--teacher chgnet:r2scan] [--students DIRECTORY]
        [--no-shares] [--out runs/differentiable_validation]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

import jaxmlip as jm

mpl.use("Agg")
import matplotlib.pyplot as plt

from jaxmlip.figures import figure

KELVIN = 250.0
OBSERVABLES: tuple[str, ...] = (
    "rdf:O-O",
    "rdf:O-H",
    "rdf:H-H",
    "potential_energy",
    "bond:O-H",
    "angle:H-O-H",
    "adf:O-O-O",
    "adf:H-O-H",
    "tetrahedral:O",
    "coordination:O-H",
)
SPLIT = ("rdf:O-O", "rdf:O-H", "potential_energy")
"""Whose predicted errors are drawn by where they come from."""

SIGMAS, SHARE = 2.0, 0.3
"""A prediction holds that is off by less than so many standard errors, or by less than this share of what is found."""


def main() -> None:
    """Command line."""
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    teacher = jm.load(options.teacher)
    start = jm.ice_ih(molecules=options.molecules, seed=0)
    sampling = jm.Sampling(
        time_ps=options.time_ps, replicas=options.replicas, timestep_fs=1.0, sample_every_fs=5.0, bridge=False
    )
    ensemble: Any = jm.NVT(KELVIN, friction_per_ps=50.0)
    names = [*OBSERVABLES]
    if options.ensemble == "npt":
        ensemble = jm.NPT(KELVIN, 0.0, "flexible", pressure_time_ps=0.05, friction_per_ps=50.0)
        names += ["density", "enthalpy"]
    teacher_run = simulated(teacher, start, ensemble, sampling, options.out / "teacher.h5", seed=1)
    found = {}
    for path in sorted(options.students.glob("*.jaxmlip")):
        print(f"\n## {path.stem}", flush=True)
        found[path.stem] = of_student(
            jm.load(path),
            teacher,
            start,
            ensemble,
            sampling,
            teacher_run,
            names,
            options.out / path.stem,
            options.shares,
        )
    (options.out / "results.json").write_text(json.dumps(found, indent=1))
    failed = {name: rows.pop("failed") for name, rows in found.items() if "failed" in rows}
    table = "\n\n".join(
        f"### {name}\n\n" + (f"{failed[name]}." if name in failed else f"{as_table(rows)}\n\n{in_words(rows)}")
        for name, rows in found.items()
    )
    (options.out / "table.md").write_text(table + "\n")
    draw_agreement({name: rows for name, rows in found.items() if rows}, options.out / "agreement.png")
    print(f"\n{table}\n\nwritten to {options.out}")


def parsed() -> Any:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--time-ps", type=float, default=0.5)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--ensemble", choices=("nvt", "npt"), default="nvt")
    parser.add_argument("--molecules", type=int, default=32)
    parser.add_argument(
        "--no-shares", dest="shares", action="store_false", help="not where errors come from: a fifth of the calls"
    )
    parser.add_argument("--teacher", default="chgnet:r2scan")
    parser.add_argument("--students", type=Path, default=Path(__file__).parent / "students")
    parser.add_argument("--out", type=Path, default=Path("runs/differentiable_validation"))
    return parser.parse_args()


def simulated(potential: Any, start: Any, ensemble: Any, sampling: Any, path: Path, seed: int) -> Any:
    """A run of a potential's, found again where it was made before."""
    jm.simulate(
        potential,
        start,
        ensemble,
        time_ps=sampling.time_ps,
        replicas=sampling.replicas,
        timestep_fs=sampling.timestep_fs,
        sample_every_fs=sampling.sample_every_fs,
        seed=seed,
        keep_velocities=True,
        on_failure="mark",
        to=path,
    )
    return jm.load_run(path)


def of_student(
    student: Any,
    teacher: Any,
    start: Any,
    ensemble: Any,
    sampling: Any,
    teacher_run: Any,
    names: list[str],
    out: Path,
    shares: bool,
) -> dict[str, Any]:
    """Rows by observable: what the ladder said, what the teacher's simulation says, and what response predicts."""
    run = simulated(student, start, ensemble, sampling, out.with_suffix(".h5"), seed=0)
    options: dict[str, Any] = {"observables": names, "sampling": sampling}
    without = jm.validate(run, student, teacher, ensemble, **options, to=out / "without")
    direct = jm.validate(run, student, teacher, ensemble, **options, teacher_run=teacher_run, to=out / "direct")
    print(without, f"\nrefused: {dict(without.refused)}\n", direct, sep="\n", flush=True)
    if all(each.student is None for each in direct.observables.values()):
        return {"failed": direct.reason}
    observables: dict[str, Any] = {
        name: jm.observable_from_text(name, temperature_K=KELVIN, pressure_GPa=0.0) for name in names
    }
    wanted: dict[str, Any] = {} if shares else {"by": ()}
    predicted = jm.predicted_error(run, student, teacher, list(observables.values()), temperature_K=KELVIN, **wanted)
    if shares:
        draw_shares(predicted, observables, out)
    rows = {}
    for name, observable in observables.items():
        response = predicted[observable.name]
        rows[name] = row_of(without.observables[name], direct.observables[name], response)
    return rows


def draw_shares(predicted: Any, observables: dict[str, Any], out: Path) -> None:
    """Where the predicted errors come from."""
    panels, axes = figure(len(SPLIT), 3, 11.0, 2.6 * len(SPLIT))
    for row, name in zip(axes, SPLIT, strict=True):
        predicted[observables[name].name].draw(row)
    panels.suptitle(f"where the predicted errors of {out.name} come from")
    panels.savefig(out.with_name(f"{out.name}-where.png"), dpi=130)
    plt.close(panels)


def row_of(without: Any, direct: Any, response: Any) -> dict[str, Any]:
    """Numbers of one observable.

    Distributions become one number along the sign of what response predicts, which knows nothing of the teacher's run:
    the integral of |what was found| would be positive by the noise of that run alone. Errors are of the replicas, as
    neighbouring bins go together.
    """
    axis = response.observable.axis
    sign = np.sign(response.total.value) if axis is not None else np.ones(())
    weights = sign * (1.0 if axis is None else float(axis[1] - axis[0]))

    def along(estimate: Any) -> tuple[float, float]:
        value = float((weights * estimate.value).sum())
        if estimate.blocks is not None and estimate.value.ndim:
            parts = (estimate.blocks * weights).sum(axis=tuple(range(1, estimate.blocks.ndim)))
            return value, float(parts.std(ddof=1) / np.sqrt(len(parts)))
        return value, float(np.sqrt(((weights * estimate.error) ** 2).sum()))

    def between(one: Any, other: Any) -> tuple[float, float]:
        (first, error), (second, others) = along(one), along(other)
        return first - second, float(np.hypot(error, others))

    found, found_error = between(direct.student, direct.teacher)
    told, told_error = along(response.total)
    off = abs(told - found) / np.hypot(told_error, found_error)
    row = {
        "found": [found, found_error],
        "response": [told, told_error],
        "response_sigma": off,
        "response_holds": bool(off < SIGMAS or abs(told - found) < SHARE * abs(found)),
        "tolerance": direct.tolerance,
        "direct_verdict": direct.answer,
        "direct_sigma": direct.sigma,
        "ladder_method": without.method,
        "ladder_verdict": without.answer,
        "ladder_sigma": None,
    }
    if without.teacher is not None:
        value, error = between(without.teacher, direct.teacher)
        row["ladder_sigma"] = abs(value) / error if error > 0 else None
    return row


def as_table(rows: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| observable | student − teacher, found | predicted | apart, σ | verdict without the teacher's "
        "simulation (by) | ladder's teacher − teacher's own, σ | verdict with it |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        numbers = " | ".join(f"{value:.3g} ± {error:.2g}" for value, error in (row["found"], row["response"]))
        sigma = "–" if row["ladder_sigma"] is None else f"{row['ladder_sigma']:.1f}"
        by = f"{row['ladder_verdict']} ({row['ladder_method'] or 'no way allowed'})"
        lines.append(f"| {name} | {numbers} | {row['response_sigma']:.1f} | {by} | {sigma} | {row['direct_verdict']} |")
    return "\n".join(lines)


def in_words(rows: dict[str, Any]) -> str:
    """What the table comes to."""
    holds = sum(row["response_holds"] for row in rows.values())
    clear = sum(abs(row["found"][0]) > SIGMAS * row["found"][1] for row in rows.values())
    given = [row["ladder_sigma"] for row in rows.values() if row["ladder_sigma"] is not None]
    near = sum(sigma < 3 for sigma in given)
    return (
        f"Linear response predicts sign and size (within {SHARE:.0%} or {SIGMAS:g} σ) of {holds} of {len(rows)} "
        f"observables, of which {clear} differ by more than {SIGMAS:g} σ. Without the teacher's simulation the ladder "
        f"gave {len(given)} numbers; {near} of them agree with it within 3 σ."
    )


def draw_agreement(found: dict[str, Any], path: Path) -> None:
    """Predicted against found, in units of what does no harm."""
    panels, axes = figure(1, 1, 5.2, 4.6)
    ax = axes[0][0]
    for number, (student, rows) in enumerate(found.items()):
        scale = np.array([row["tolerance"] for row in rows.values()])
        x, x_error = (np.array([row["found"][k] for row in rows.values()]) / scale for k in (0, 1))
        y, y_error = (np.array([row["response"][k] for row in rows.values()]) / scale for k in (0, 1))
        ax.errorbar(
            x, y, xerr=x_error, yerr=y_error, fmt="o", ms=4, color=f"C{number}", label=student.replace("_", " "), lw=0.8
        )
    reach = max(np.abs(ax.get_xlim()).max(), 1.0)
    ax.plot([-reach, reach], [-reach, reach], color="0.5", lw=0.8, zorder=0)
    ax.axvspan(-1, 1, color="0.9", zorder=-1)
    ax.set_xscale("symlog", linthresh=1.0)
    ax.set_yscale("symlog", linthresh=1.0)
    ax.set(xlabel="student − teacher, found / tolerance", ylabel="predicted by linear response / tolerance")
    ax.legend(fontsize="small")
    panels.savefig(path, dpi=130)
    plt.close(panels)


if __name__ == "__main__":
    main()
