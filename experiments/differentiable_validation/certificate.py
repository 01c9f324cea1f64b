"""Force errors in bulk ice of energies-only students, predicted without a high-fidelity force, against those found.

The strategy is `pair_difference`, from N clusters of ice of several radii, labelled by MACE-MP-0 and MACE-OFF23. The
prediction (`jaxmlip.validation.certificate`) rests on surrogates of the difference of the two: differences between
CHGNet for GGA and for r2SCAN, MACE-MP-0, a small student of ours, and potentials whose parameters were shaken. Their
forces are looked at in bulk frames 0 to 4. Forces of MACE-OFF23 are looked at once, in bulk frames 5 to 14, when all
predictions are made. The student errs by what it lacks of the difference; its foundation is MACE-MP-0 itself.

    JAXMLIP_DATA=... uv run python experiments/differentiable_validation/certificate.py

Labels of the surrogates take about 20 minutes on two cores, and are kept in `runs/certificate/`; the rest takes 6. The
same command again goes on from what is there.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxmlip.figures import figure
from jaxmlip.files import write_json, write_text, written_whole
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.files import load
from jaxmlip.potentials.pairs import PairPotential
from jaxmlip.potentials.potential import N_SPECIES, Potential, evaluate
from jaxmlip.progress import progress_bar
from jaxmlip.study.plots import calibration_curve, certificates
from jaxmlip.systems.dataset import Frame, read_frames
from jaxmlip.systems.graph import Graph, graph_from_atoms
from jaxmlip.training.evidence import LinearPosterior, fit_by_evidence
from jaxmlip.training.strategies.pair_difference import CENTRES, SHORTEST, PairDifference, block_features, smooth
from jaxmlip.validation.calibration import calibration
from jaxmlip.validation.certificate import ForceErrorCertificate, SurrogateFit, certified

HERE = Path(__file__).parent
CLUSTERS = {"4.0": (50, 100, 200, 400), "5.0": (50, 100, 200, 400), "5.5": (50, 100, 200), "6.0": (50, 100, 200)}
"""Numbers of clusters for each radius in Å."""

SURROGATES = (
    ("gga", "mp0"), ("r2scan", "mp0"), ("r2scan", "gga"), ("gga_shaken", "gga"), ("gga_shaken_again", "gga"),
    ("student_shaken", "student"), ("student", "gga"),
)  # fmt: skip
"""What is lifted to, and from where."""

SHAKEN = {"gga_shaken": ("gga", 0.02), "gga_shaken_again": ("gga", 0.02), "student_shaken": ("student", 0.05)}
"""Which potential's parameters are multiplied by normal numbers about 1, and their deviation."""

DRAWS = 64
LEVELS = (0.68, 0.9)


def main() -> None:
    """Label, fit, certify, and only then look at the forces of the high fidelity."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/certificate"), help="folder of what is kept")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of table and figure")
    options = parser.parse_args()
    if "JAXMLIP_DATA" not in os.environ:
        parser.error("JAXMLIP_DATA is not set; export the folder that has ice_maceoff/ in it.")
    data = Data(Path(os.environ["JAXMLIP_DATA"]) / "ice_maceoff", options.out)
    cells = []
    with progress_bar(total=sum(map(len, CLUSTERS.values())), desc="certificates", unit="certificate") as bar:
        for radius, sizes in CLUSTERS.items():
            clusters = Clusters(data, radius, max(sizes))
            for number in sizes:
                cells.append(clusters.cell(number))
                bar.update()
    found = [data.error(cell.coefficients, cell.cutoff, "test", "off23", "mp0") for cell in cells]
    report(list(zip(cells, found, strict=True)), options.results)


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is known before a force of the high fidelity is looked at.

    Attributes:
        radius, number: of clusters; Å.
        surrogates: what the strategy did to each.
        within, noise: of the student, see `SurrogateFit`.
        coefficients, cutoff: of the student's pair functions.
    """

    radius: str
    number: int
    surrogates: list[SurrogateFit]
    within: float
    noise: float
    coefficients: list[float]
    cutoff: float

    def certificate(self, level: float) -> ForceErrorCertificate:
        """The prediction."""
        return certified(self.within, self.noise, self.surrogates, level)

    def left_out(self, level: float) -> list[ForceErrorCertificate]:
        """Each surrogate as the others predict it."""
        rest = [[other for other in self.surrogates if other is not one] for one in self.surrogates]
        pairs = zip(self.surrogates, rest, strict=True)
        return [certified(one.within, one.noise, others, level) for one, others in pairs]


@dataclasses.dataclass(frozen=True)
class Student:
    """A fitted difference: what has been learnt, and the range of its pairs."""

    linear: LinearPosterior
    empty: PairPotential
    blocks: tuple[tuple[int, float], ...]

    def coefficients(self, weights: list[np.ndarray]) -> np.ndarray:
        """Of the pair functions, flat."""
        total = np.zeros((3, CENTRES))
        for (pair, scale), values in zip(self.blocks, weights[1:], strict=True):
            total[pair] += smooth(self.empty, scale) @ values
        return total.ravel()

    def within(self, data: "Data", which: str) -> float:
        """Force error that the posterior expects, eV/Å."""
        forces, rng = data.forces_of_functions(which, self.empty.cutoff), np.random.default_rng(0)
        mean, metric = self.coefficients(self.linear.mean()), forces @ forces.T / forces.shape[1]
        draws = [self.coefficients(self.linear.sample(rng)) - mean for _ in range(DRAWS)]
        return float(np.sqrt(np.mean([draw @ metric @ draw for draw in draws])))


class Data:
    """Frames, labels of all potentials, and forces of pair functions; what takes long is kept."""

    def __init__(self, folder: Path, kept: Path) -> None:
        self.folder, self.kept = folder, kept
        kept.mkdir(parents=True, exist_ok=True)
        self._functions: dict[tuple[str, float], np.ndarray] = {}
        self._potentials: dict[str, Potential] = {}
        self._energies: dict[tuple[str, str], np.ndarray] = {}

    def frames(self, file: str, level: str, index: str) -> list[Frame]:
        """Labelled by MACE-MP-0 or MACE-OFF23."""
        path = self.folder / f"{file}.extxyz"
        return read_frames(path, energy_key=f"{level}_energy", forces_key=f"{level}_forces", index=index)

    def energies(self, radius: str, name: str, number: int) -> np.ndarray:
        """Of clusters, eV."""
        file, index = f"clusters_{radius}A", f":{number}"
        if (radius, name) not in self._energies:
            if name in ("mp0", "off23"):
                found = np.array([frame.energy for frame in self.frames(file, name, index)])
            else:
                found = self._labels(file, name, index)[0]
            self._energies[radius, name] = found
        return self._energies[radius, name]

    def bulk(self, which: str, name: str) -> np.ndarray:
        """Forces in the frames that are shown to predictions, or in those of the test, flat, eV/Å."""
        index = {"shown": "0:5", "test": "5:15"}[which]
        if name in ("mp0", "off23"):
            if name == "off23" and which != "test":
                raise ValueError("No prediction may see forces of the high fidelity.")
            return np.concatenate([frame.forces.ravel() for frame in self.frames("bulk", name, index)])
        return self._labels("bulk", name, index)[1].ravel()

    def error(self, coefficients: Any, cutoff: float, which: str, to: str, start: str) -> float:
        """Root mean square error of a difference's forces, eV/Å."""
        predicted = np.asarray(coefficients) @ self.forces_of_functions(which, cutoff)
        return float(np.sqrt(np.mean((predicted - (self.bulk(which, to) - self.bulk(which, start))) ** 2)))

    def forces_of_functions(self, which: str, cutoff: float) -> np.ndarray:
        """[functions, components], eV/Å for a coefficient of 1 eV."""
        key = (which, cutoff)
        if key not in self._functions:
            index, empty = {"shown": "0:5", "test": "5:15"}[which], no_pairs(cutoff)
            graphs = [graph_from_atoms(f.atoms, cutoff) for f in self.frames("bulk", "mp0", index)]
            found = [np.asarray(_function_forces(empty, graph), np.float64) for graph in graphs]
            self._functions[key] = np.concatenate([each.reshape(len(each), -1) for each in found], axis=1)
        return self._functions[key]

    def _labels(self, file: str, name: str, index: str) -> tuple[np.ndarray, np.ndarray]:
        """Energies, and in the bulk forces."""
        path = self.kept / f"{file}-{name}.npz"
        frames = self.frames(file, "mp0", index)
        if path.exists():
            with np.load(path) as there:
                if len(there["energies"]) == len(frames):
                    return there["energies"], there["forces"]
        found = predict(self.potential(name), [frame.atoms for frame in frames])
        energies = np.array([frame.energy for frame in found])
        forces = np.concatenate([frame.forces for frame in found]) if file == "bulk" else np.zeros((0, 3))
        with written_whole(path) as draft, draft.open("wb") as handle:
            np.savez(handle, energies=energies, forces=forces)
        return energies, forces

    def potential(self, name: str) -> Potential:
        """A surrogate."""
        if not self._potentials:
            student = HERE.parents[1] / "tests" / "simulation" / "data" / "ice_student.jaxmlip"
            known = {"gga": load("chgnet:gga"), "r2scan": load("chgnet:r2scan"), "student": load(str(student))}
            rng = np.random.default_rng(0)
            for shaken, (source, deviation) in SHAKEN.items():
                known[shaken] = _shaken(known[source], deviation, rng)
            self._potentials = known
        return self._potentials[name]


class Clusters:
    """Clusters of one radius with the features of their pairs."""

    def __init__(self, data: Data, radius: str, most: int) -> None:
        self.data, self.radius, self.most = data, radius, most
        structures = [frame.atoms for frame in data.frames(f"clusters_{radius}A", "mp0", f":{most}")]
        self.counts = np.array([[np.sum(atoms.numbers == z) for z in (1, 8)] for atoms in structures], np.float64)
        strategy = PairDifference()
        self.blocks = tuple((pair, scale) for pair in range(3) for scale in strategy.length_scales)
        graphs = [graph_from_atoms(atoms, 5.0) for atoms in structures]
        self.features = []
        for cutoff in strategy.cutoffs:
            empty = no_pairs(cutoff)
            self.features.append((empty, block_features(empty, self.blocks, graphs)))

    def fit(self, to: str, start: str, number: int) -> Student:
        """The difference of two potentials, from the energies of the first clusters."""
        energies = [self.data.energies(self.radius, name, self.most)[:number] for name in (to, start)]
        counts, labels = self.counts[:number], energies[0] - energies[1]
        labels = labels - counts @ np.linalg.lstsq(counts, labels, rcond=None)[0]
        fits = []
        for empty, features in self.features:
            blocks = [counts, *(block[:number] for block in features)]
            fits.append(Student(fit_by_evidence(blocks, labels, counts.sum(axis=1)), empty, self.blocks))
        return max(fits, key=lambda student: student.linear.log_evidence)

    def cell(self, number: int) -> Cell:
        """What the first clusters give; kept in a file."""
        path = self.data.kept / f"cell-{self.radius}-{number}.json"
        if path.exists():
            there = json.loads(path.read_text())
            return Cell(**there | {"surrogates": [SurrogateFit(**each) for each in there["surrogates"]]})
        fits = [self.surrogate(to, start, number) for to, start in SURROGATES]
        student = self.fit("off23", "mp0", number)
        coefficients = student.coefficients(student.linear.mean()).tolist()
        within, cutoff = student.within(self.data, "shown"), student.empty.cutoff
        found = Cell(self.radius, number, fits, within, student.linear.noise, coefficients, cutoff)
        write_json(path, dataclasses.asdict(found))
        return found

    def surrogate(self, to: str, start: str, number: int) -> SurrogateFit:
        """What the strategy does to a surrogate."""
        student = self.fit(to, start, number)
        coefficients = student.coefficients(student.linear.mean())
        found = self.data.error(coefficients, student.empty.cutoff, "shown", to, start)
        return SurrogateFit(f"{to} − {start}", student.within(self.data, "shown"), student.linear.noise, found)


def no_pairs(cutoff: float) -> PairPotential:
    """Pair functions with coefficients of 0."""
    return PairPotential(np.zeros((3, CENTRES), np.float32), np.zeros(N_SPECIES), (1, 8), cutoff, SHORTEST)


def _shaken(potential: Potential, deviation: float, rng: np.random.Generator) -> Potential:
    """Parameters times normal numbers about 1."""

    def shake(leaf: np.ndarray) -> np.ndarray:
        leaf = np.asarray(leaf)
        return leaf * (1 + deviation * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return potential.with_params(jax.tree.map(shake, potential.params))


@jax.jit
def _function_forces(empty: PairPotential, graph: Graph) -> jax.Array:
    """Forces for one coefficient of 1 at a time."""

    def of_one(number: jax.Array) -> jax.Array:
        params = jnp.zeros(3 * CENTRES).at[number].set(1.0).reshape(3, CENTRES)
        return evaluate(empty.replace(params=params), graph).forces

    return jax.lax.map(of_one, jnp.arange(3 * CENTRES))


def report(rows: list[tuple[Cell, float]], folder: Path) -> None:
    """Table, numbers and figure."""
    folder.mkdir(parents=True, exist_ok=True)
    students, others = "MACE-OFF23", "surrogates, each by the others"
    series = {level: _series(rows, level, students, others) for level in LEVELS}
    inside = {
        level: {name: [c.low <= found <= c.high for found, c in pairs] for name, pairs in each.items()}
        for level, each in series.items()
    }
    lines = ["| radius, Å | N | posterior alone | predicted | 68 % | 90 % | found |", "|---|---|---|---|---|---|---|"]
    for row, (cell, found) in enumerate(rows):
        issued = [series[level][students][row][1] for level in LEVELS]
        ends = " | ".join(f"{1e3 * each.low:.0f} to {1e3 * each.high:.0f}" for each in issued)
        middle = f"{1e3 * cell.within:.0f} | {1e3 * issued[0].predicted:.0f}"
        lines.append(f"| {cell.radius} | {cell.number} | {middle} | {ends} | {1e3 * found:.0f} |")
    lines += ["", "Force errors in bulk ice, meV/Å, root mean square over components.", ""]
    for name in (students, others):
        counts = [f"{100 * level:.0f} %: {sum(each[name])} of {len(each[name])}" for level, each in inside.items()]
        lines.append(f"* Inside the intervals, {name}: {', '.join(counts)}")
    write_text(folder / "certificate.md", "\n".join(lines) + "\n")
    numbers = {
        "rows": [dataclasses.asdict(cell) | {"coefficients": None, "found": found} for cell, found in rows],
        "inside": {str(level): {name: float(np.mean(c)) for name, c in each.items()} for level, each in inside.items()},
    }
    write_json(folder / "certificate.json", numbers)
    draw(series[LEVELS[-1]], folder / "certificate.png")


def _series(rows: list[tuple[Cell, float]], level: float, students: str, others: str) -> dict:
    """Found errors and certificates, of surrogates and of the students."""
    left_out = [
        (one.found, issued)
        for cell, _ in rows
        for one, issued in zip(cell.surrogates, cell.left_out(level), strict=True)
    ]
    return {others: left_out, students: [(found, cell.certificate(level)) for cell, found in rows]}


def draw(series: dict[str, list[tuple[float, ForceErrorCertificate]]], path: Path) -> None:
    """Predicted against found, with surrogates and by the posterior alone, and the coverage of the intervals."""
    drawn, axes = figure(1, 3, 12.0, 4.2)
    left, middle, right = axes[0]
    certificates(left, series)
    left.set_title("with surrogates, 90 % intervals")
    alone = {
        name: [(found, dataclasses.replace(c, predicted=c.within, low=c.within, high=c.within)) for found, c in pairs]
        for name, pairs in series.items()
    }
    certificates(middle, alone)
    middle.set(title="the posterior alone", xlim=left.get_xlim(), ylim=left.get_ylim())
    for name, pairs in series.items():
        predicted, found = [c.logarithm for _, c in pairs], [float(np.log(found)) for found, _ in pairs]
        calibration_curve(right, calibration(predicted, found), name)
    right.set_title("coverage of the intervals")
    for ax in axes[0]:
        ax.legend(fontsize=7, loc="upper left")
    drawn.savefig(path, dpi=110)
    plt.close(drawn)


if __name__ == "__main__":
    main()
