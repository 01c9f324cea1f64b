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
import os
from pathlib import Path

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
from jaxmlip.study.plots import certificates
from jaxmlip.systems.dataset import Frame, read_frames
from jaxmlip.systems.graph import graph_from_atoms
from jaxmlip.training.evidence import LinearPosterior, fit_by_evidence
from jaxmlip.training.strategies.pair_difference import CENTRES, SHORTEST, PairDifference, block_features, smooth
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
    predictions = []
    with progress_bar(total=sum(map(len, CLUSTERS.values())), desc="certificates", unit="certificate") as bar:
        for radius, sizes in CLUSTERS.items():
            clusters = Clusters(data, radius, max(sizes))
            for number in sizes:
                fits = [clusters.surrogate(to, start, number) for to, start in SURROGATES]
                predictions.append((radius, number, fits, clusters.fit("off23", "mp0", number)))
                bar.update()
    rows = []
    for radius, number, fits, student in predictions:
        found = data.error(student, "test", "off23", "mp0")
        issued = [certified(student.within(data, "shown"), student.linear.noise, fits, level) for level in LEVELS]
        rows.append((radius, number, found, issued, left_out(fits)))
    report(rows, options.results)


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
        forces, rng = data.forces_of_functions(which, self.empty), np.random.default_rng(0)
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
        keys = {"energy_key": f"{level}_energy", "forces_key": f"{level}_forces"}
        return read_frames(self.folder / f"{file}.extxyz", index=index, **keys)

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

    def error(self, student: Student, which: str, to: str, start: str) -> float:
        """Root mean square error of the difference's forces, eV/Å."""
        predicted = student.coefficients(student.linear.mean()) @ self.forces_of_functions(which, student.empty)
        return float(np.sqrt(np.mean((predicted - (self.bulk(which, to) - self.bulk(which, start))) ** 2)))

    def forces_of_functions(self, which: str, empty: PairPotential) -> np.ndarray:
        """[functions, components], eV/Å for a coefficient of 1 eV."""
        key = (which, empty.cutoff)
        if key not in self._functions:
            index = {"shown": "0:5", "test": "5:15"}[which]
            graphs = [graph_from_atoms(f.atoms, empty.cutoff) for f in self.frames("bulk", "mp0", index)]
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
            empty = PairPotential(np.zeros((3, CENTRES), np.float32), np.zeros(N_SPECIES), (1, 8), cutoff, SHORTEST)
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

    def surrogate(self, to: str, start: str, number: int) -> SurrogateFit:
        """What the strategy does to a surrogate."""
        student = self.fit(to, start, number)
        found = self.data.error(student, "shown", to, start)
        return SurrogateFit(f"{to} − {start}", student.within(self.data, "shown"), student.linear.noise, found)


def left_out(fits: list[SurrogateFit]) -> list[tuple[SurrogateFit, list[ForceErrorCertificate]]]:
    """Each surrogate with the certificates that the others give."""
    rest = [[other for other in fits if other is not one] for one in fits]
    return [
        (one, [certified(one.within, one.noise, others, level) for level in LEVELS])
        for one, others in zip(fits, rest, strict=True)
    ]


def _shaken(potential: Potential, deviation: float, rng: np.random.Generator) -> Potential:
    """Parameters times normal numbers about 1."""

    def shake(leaf: np.ndarray) -> np.ndarray:
        leaf = np.asarray(leaf)
        return leaf * (1 + deviation * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return potential.with_params(jax.tree.map(shake, potential.params))


@jax.jit
def _function_forces(empty: PairPotential, graph) -> jax.Array:
    """Forces for one coefficient of 1 at a time."""

    def of_one(number: jax.Array) -> jax.Array:
        params = jnp.zeros(3 * CENTRES).at[number].set(1.0).reshape(3, CENTRES)
        return evaluate(empty.replace(params=params), graph).forces

    return jax.lax.map(of_one, jnp.arange(3 * CENTRES))


def report(rows: list, folder: Path) -> None:
    """Table, numbers and figure."""
    folder.mkdir(parents=True, exist_ok=True)
    held = {level: _held([(found, issued[k]) for _, _, found, issued, _ in rows]) for k, level in enumerate(LEVELS)}
    others = [(one.found, issued) for *_, surrogates in rows for one, issued in surrogates]
    unseen = {level: _held([(found, issued[k]) for found, issued in others]) for k, level in enumerate(LEVELS)}
    lines = ["| radius, Å | N | posterior alone | predicted | 68 % | 90 % | found |", "|---|---|---|---|---|---|---|"]
    for radius, number, found, issued, _ in rows:
        ends = [f"{1e3 * each.low:.0f} to {1e3 * each.high:.0f}" for each in issued]
        middle = [f"{1e3 * value:.0f}" for value in (issued[1].within, issued[1].predicted)]
        lines.append(f"| {radius} | {number} | {' | '.join(middle)} | {' | '.join(ends)} | {1e3 * found:.0f} |")
    lines += ["", "Force errors in bulk ice, meV/Å, root mean square over components.", ""]
    for name, counts in (("MACE-OFF23", held), ("surrogates, each predicted by the others", unseen)):
        inside = ", ".join(f"{100 * level:.0f} %: {int(np.sum(c))} of {len(c)}" for level, c in counts.items())
        lines.append(f"* Inside the intervals, {name}: {inside}")
    write_text(folder / "certificate.md", "\n".join(lines) + "\n")
    numbers = {
        "rows": [
            {"radius_A": radius, "number": number, "found_eV_A": found, **_numbers(issued)}
            for radius, number, found, issued, _ in rows
        ],
        "surrogates": [dataclasses.asdict(one) | {"radius_A": r, "number": n} for r, n, *_, s in rows for one, _ in s],
        "inside": {str(level): float(np.mean(counts)) for level, counts in held.items()},
        "surrogates_inside": {str(level): float(np.mean(counts)) for level, counts in unseen.items()},
    }
    write_json(folder / "certificate.json", numbers)
    drawn, axes = figure(1, 2, 9.0, 4.4)
    series = {
        "surrogates, each by the others": [(found, issued[1]) for found, issued in others],
        "MACE-OFF23": [(found, issued[1]) for _, _, found, issued, _ in rows],
    }
    certificates(axes[0, 0], series)
    axes[0, 0].set_title("with surrogates, 90 % intervals")
    for name, marker in (("surrogates, each by the others", "o"), ("MACE-OFF23", "s")):
        x, y = np.array([(1e3 * issued.within, 1e3 * found) for found, issued in series[name]]).T
        axes[0, 1].plot(x, y, marker, ms=4, alpha=0.8, label=name)
    limits = axes[0, 0].get_xlim()
    axes[0, 1].plot(limits, limits, color="0.3", lw=0.8)
    axes[0, 1].set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal", title="the posterior alone")
    axes[0, 1].set(xlabel="predicted force error / meV Å$^{-1}$", ylabel="found force error / meV Å$^{-1}$")
    for ax in axes[0]:
        ax.legend(fontsize=7, loc="upper left")
    drawn.savefig(folder / "certificate.png", dpi=110)
    plt.close(drawn)


def _held(pairs: list[tuple[float, ForceErrorCertificate]]) -> np.ndarray:
    """Whether found errors lie in their intervals."""
    return np.array([issued.low <= found <= issued.high for found, issued in pairs])


def _numbers(issued: list[ForceErrorCertificate]) -> dict:
    """Of certificates of one posterior at several levels."""
    one = issued[-1]
    shared = {"predicted_eV_A": one.predicted, "posterior_eV_A": one.within, "noise_eV": one.noise}
    ends = {f"interval_{each.level}": [each.low, each.high] for each in issued}
    return shared | ends | {"inverse_length_per_A": one.inverse_length, "coverage": one.coverage}


if __name__ == "__main__":
    main()
