"""Which clusters to label next: chosen for the forces of the bulk, at random, or where a committee disagrees most.

On published labels of ice Ih (README.md of the repository: JAXMLIP_DATA). A foundation that imitates MACE-MP-0 is
lifted to MACE-OFF23 in closed form, from energies of 50 clusters. Five disjoint draws of these are five repeats. For
each, 50 of the other 550 clusters are chosen in six ways:

    random        without looking
    energy draws  largest standard deviation of the energy per √atom over potentials drawn from the posterior
    force draws   largest mean square standard deviation of its forces over them
    bulk forces   jm.choose_labels for the forces of bulk frames 0 to 4, of which structures alone are looked at
    bulk energy   jm.choose_labels for their energies
    worst bulk    as bulk forces, but those 50 that are expected to help least: is the expectation worth anything?

The spread of an infinite committee is known in closed form, and so nothing is drawn. All 100 energies then give a
potential, whose energies and forces are compared with labels of bulk frames 5 to 14: nothing else sees these, and no
label of MACE-OFF23 in the bulk has a part in anything before. Also: how far removing a label of the first repeat moves
the bulk's energy, as predicted by jm.influence and by fits in which prior and noise are chosen anew.

What is done is kept in --out, and the same line goes on from there. Usage:

    uv run python experiments/differentiable_validation/choose_clusters.py [--repeats 5] [--number 50]
        [--foundation FILE] [--out runs/choose_clusters]
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

import jaxmlip as jm
from jaxmlip.files import write_json, write_text
from jaxmlip.potentials.files import load_potential
from jaxmlip.training.distill import distillation_problem, split_validation
from jaxmlip.training.evidence import fit_by_evidence
from jaxmlip.training.strategies.closed_form import ClosedForm, Posterior
from jaxmlip.validation.influence import greedy_choice

RESULTS = Path(__file__).parent / "results"
REFERENCES = {1: -1.158988237380981, 8: -2.0814614295959}
"""Isolated atoms of MACE-MP-0, eV."""

STRATEGIES: dict[str, ClosedForm] = {"tangent_kernel": jm.TangentKernel(), "pair_difference": jm.PairDifference()}
ARMS = ("random", "energy draws", "force draws", "bulk forces", "bulk energy", "worst bulk")
METRICS = {
    "force_rmse_meV_A": "force RMSE, meV/Å",
    "energy_mean_meV_H2O": "|mean energy error|, meV/H2O",
    "energy_std_meV_H2O": "energy RMSE, mean removed, meV/H2O",
}


class Study:
    """The data and the folder of one run.

    Attributes:
        options: of the command line.
        foundation: that all potentials go on from.
        high, low: clusters with the labels of either level.
        unlabelled: bulk frames 0 to 4.
    """

    def __init__(self, options: argparse.Namespace, data: Path) -> None:
        self.options, self.data = options, data
        self.high = self.frames("clusters_5.0A.extxyz", "off23")
        self.low = self.frames("clusters_5.0A.extxyz", "mp0")
        self.unlabelled = [frame.atoms for frame in self.frames("bulk.extxyz", "mp0", ":5")]
        self.foundation = self.distilled() if options.foundation is None else load_potential(str(options.foundation))

    def frames(self, file: str, level: str, index: str = ":") -> list[jm.Frame]:
        """Labelled frames of a file."""
        keys: dict[str, Any] = {"energy_key": f"{level}_energy", "forces_key": f"{level}_forces"}
        return jm.read_frames(self.data / file, index=index, **keys)

    def distilled(self) -> jm.Potential:
        """A student of MACE-MP-0 on all clusters and bulk frames 0 to 4; about ten minutes on one core."""
        path = self.options.out / "foundation.jaxmlip"
        if not path.exists():
            frames = [*self.frames("bulk.extxyz", "mp0", ":5"), *self.low]
            training, validation = split_validation(frames, 0.02, 0)
            references = np.zeros(119)
            references[list(REFERENCES)] = list(REFERENCES.values())
            model = jm.Equivariant(channels=32, l_max=2, message_l=0, correlation=3, layers=2, cutoff=5.0)
            settings = jm.TrainingSettings(
                epochs=20, batch_size=4, tiers=2, validation_every=2, energy_weight=40, forces_weight=10
            )
            problem = distillation_problem(model, training, validation, references, settings=settings)
            jm.save(jm.train(problem, settings, folder=self.options.out / "foundation").potential, path)
        return jm.load(path)

    def posterior(self, strategy: str, labelled: np.ndarray) -> Posterior:
        """What the energies of some clusters say."""
        how, high = STRATEGIES[strategy], [self.high[n] for n in labelled]
        return how.posterior(how.problem(self.foundation, high, validation=high[:1], low=self.low, labels="energy"))

    def atoms(self, places: np.ndarray) -> list[Atoms]:
        """Structures of clusters."""
        return [self.high[n].atoms for n in places]

    def tested(self, posterior: Posterior) -> dict[str, float]:
        """The final test, on bulk frames 5 to 14."""
        test = self.frames("bulk.extxyz", "off23", "5:15")
        found = jm.compare(test, jm.predict(posterior.potential(), [frame.atoms for frame in test]))
        return {
            "force_rmse_meV_A": found.force_rmse_meV_A,
            "energy_mean_meV_H2O": 3 * abs(found.energy_mean_meV_atom),
            "energy_std_meV_H2O": 3 * found.energy_std_meV_atom,
        }


def chosen(study: Study, posterior: Posterior, rest: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Places of clusters by each way of choosing, and what the bulk's force error is expected to become."""
    number, linear, candidates = study.options.number, posterior.linear, study.atoms(rest)
    bulk = jm.Targets.forces(posterior, study.unlabelled, directions=16)
    energies, own = jm.Targets.energies(posterior, study.unlabelled), jm.Targets.energies(posterior, candidates)
    atoms = np.array([len(each) for each in candidates], np.float64)
    spread = linear.predict([block[0] for block in own.features])[1] * atoms**0.5
    forces = jm.Targets.forces(posterior, candidates, directions=4)
    squares = linear.predict([block[0] for block in forces.features])[1] ** 2
    features = [block[0] * atoms[:, None] for block in own.features]
    among, noise = linear.covariance_of(features, features), linear.noise**2 * atoms

    best, gains = greedy_choice(among, bulk.covariance(linear, features), noise, bulk, number)
    single = bulk.squared(bulk.covariance(linear, features)) / (np.diag(among) + noise)
    places = {
        "random": rng.choice(len(rest), number, replace=False),
        "energy draws": np.argsort(-spread)[:number],
        "force draws": np.argsort(-squares.reshape(len(rest), -1).mean(axis=1))[:number],
        "bulk forces": best,
        "bulk energy": greedy_choice(among, energies.covariance(linear, features), noise, energies, number)[0],
        "worst bulk": np.argsort(single)[:number],
    }
    before = bulk.variance(linear)
    return {
        "places": {arm: rest[each].tolist() for arm, each in places.items()},
        "expected_force_rmse_meV_A": [1e3 * before**0.5, 1e3 * (before - gains.sum()) ** 0.5],
    }


def repeat(study: Study, strategy: str, number: int) -> dict[str, Any]:
    """One draw of labelled clusters, all ways of choosing the next, and their errors."""
    order = np.random.default_rng(0).permutation(len(study.high))
    size = study.options.number
    labelled, rng = order[number * size : (number + 1) * size], np.random.default_rng(100 + number)
    rest = np.setdiff1d(order, labelled)
    posterior = study.posterior(strategy, labelled)
    result = {"labelled": labelled.tolist(), **chosen(study, posterior, rest, rng)}
    result["errors"] = {"before": study.tested(posterior)}
    for arm in ARMS:
        both = np.append(labelled, result["places"][arm])
        result["errors"][arm] = study.tested(study.posterior(strategy, both))
    return result


def influences(study: Study, strategy: str) -> dict[str, Any]:
    """Changes of the bulk's mean energy (frames 0 to 4) without each label of the first repeat, meV/H2O."""
    posterior = study.posterior(strategy, np.random.default_rng(0).permutation(len(study.high))[: study.options.number])
    linear, targets = posterior.linear, jm.Targets.energies(posterior, study.unlabelled)
    rows = [block[0] for block in targets.features]
    whole, anew = linear.predict(rows)[0].mean(), []
    for place in range(len(linear.labels)):
        rest = linear.without([place])
        anew.append(fit_by_evidence(rest.features, rest.labels, rest.sizes).predict(rows)[0].mean() - whole)
    predicted = jm.influence(posterior, targets)
    return {
        "predicted": (3e3 * predicted.changes.mean(axis=1)).tolist(),
        "fitted_anew": (3e3 * np.array(anew)).tolist(),
        "effective_parameters": predicted.effective_parameters,
    }


def mean_and_error(values: list[float]) -> str:
    """Mean over repeats ± its standard error."""
    error = np.std(values, ddof=1) / len(values) ** 0.5
    digits = int(np.clip(1 - np.floor(np.log10(error)), 0, 4)) if error > 0 else 1
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"


def difference(values: list[float], random: list[float]) -> str:
    """Against random choice in the same repeats, in standard errors of the mean difference (Student's t)."""
    away = np.subtract(values, random)
    t = away.mean() / (away.std(ddof=1) / len(away) ** 0.5)
    # Two-sided 95 % of Student's t with 1 to 9 degrees of freedom.
    limit = (12.7, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)[min(len(away) - 2, 8)]
    word = "cannot tell" if abs(t) < limit else "better" if t < 0 else "worse"
    return f"{t:+.1f} σ, {word}"


def table(results: dict[str, Any]) -> str:
    """All strategies, metrics and arms, for people."""
    lines = [f"| strategy | clusters | {' | '.join(f'{title} | against random' for title in METRICS.values())} |"]
    lines.append("|" + "---|" * (2 + 2 * len(METRICS)))
    for strategy, content in results["strategies"].items():
        errors = [each["errors"] for each in content["repeats"]]
        for arm in ("before", *ARMS):
            cells = []
            for metric in METRICS:
                values, random = ([each[name][metric] for each in errors] for name in (arm, "random"))
                compared = "–" if arm in ("before", "random") else difference(values, random)
                cells += [mean_and_error(values), compared]
            lines.append(f"| {strategy} | {arm} | {' | '.join(cells)} |")
    lines += ["", "| strategy | expected force error before, after `bulk forces` | found | influence: correlation |"]
    lines.append("|---|---|---|---|")
    for strategy, content in results["strategies"].items():
        expected = np.mean([each["expected_force_rmse_meV_A"] for each in content["repeats"]], axis=0)
        found = [
            np.mean([each["errors"][arm]["force_rmse_meV_A"] for each in content["repeats"]])
            for arm in ("before", "bulk forces")
        ]
        moved = content["influence"]
        correlation = np.corrcoef(moved["predicted"], moved["fitted_anew"])[0, 1]
        cells = [f"{expected[0]:.0f}, {expected[1]:.0f}", f"{found[0]:.0f}, {found[1]:.0f}", f"{correlation:.2f}"]
        lines.append(f"| {strategy} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do what is not done yet, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="disjoint draws of labelled clusters")
    parser.add_argument("--number", type=int, default=50, help="clusters labelled first, and next")
    parser.add_argument("--foundation", type=Path, help="a student of MACE-MP-0; by default one is distilled")
    parser.add_argument("--out", type=Path, default=Path("runs/choose_clusters"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the summary is written")
    options = parser.parse_args()
    if "JAXMLIP_DATA" not in os.environ:
        parser.error("JAXMLIP_DATA is not set; export the folder that has ice_maceoff/ in it.")
    if not 2 <= options.repeats <= 600 // options.number - 1:
        parser.error(f"--repeats must be from 2 to {600 // options.number - 1}, for 600 clusters are there.")
    options.out.mkdir(parents=True, exist_ok=True)
    study = Study(options, Path(os.environ["JAXMLIP_DATA"]) / "ice_maceoff")

    def kept(name: str, make: Any) -> Any:
        path = options.out / f"{name}-{options.number}.json"
        if not path.exists():
            write_json(path, make())
            print(name, flush=True)
        return json.loads(path.read_text())

    results: dict[str, Any] = {"number": options.number, "strategies": {}}
    for strategy in STRATEGIES:
        results["strategies"][strategy] = {
            "repeats": [
                kept(f"{strategy}-{n}", lambda n=n, s=strategy: repeat(study, s, n)) for n in range(options.repeats)
            ],
            "influence": kept(f"{strategy}-influence", lambda s=strategy: influences(study, s)),
        }
        for each in results["strategies"][strategy]["repeats"]:
            each.pop("places")
    options.results.mkdir(parents=True, exist_ok=True)
    write_json(options.results / "choose_clusters.json", results)
    write_text(options.results / "choose_clusters.md", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
