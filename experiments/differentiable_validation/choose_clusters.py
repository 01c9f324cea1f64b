"""Which clusters to label next: chosen for the forces of the bulk, at random, or where a committee disagrees most.

On published labels of ice Ih (README.md of the repository: JAXMLIP_DATA). A foundation that imitates MACE-MP-0 is
lifted to MACE-OFF23 in closed form, from energies of 50 clusters. Nine disjoint draws of these are nine repeats. For
each, 50 of the other 550 clusters are chosen in six ways:

    random          without looking
    energy spread   largest standard deviation of the energy per √atom in an infinite committee: the posterior's own
    force spread    largest mean square standard deviation of the forces in it
    bulk forces     as jm.choose_labels does for forces of bulk frames 0 to 4, of which structures alone are looked at
    bulk energy     the same for their energies
    least           the 50 that are expected to help the bulk's forces least: is the expectation worth anything?

All 100 energies then give a potential, whose energies and forces are compared with labels of bulk frames 5 to 14:
nothing else sees these, and no label of MACE-OFF23 in the bulk has a part in anything before. The fits are those of
`tangent_kernel` and `pair_difference` on differences of the two labels of each cluster, with prior and noise chosen by
the evidence of the labels that have been chosen. Also: how far removing a label of the first repeat moves the bulk's
energy, as predicted by jm.influence and by fits in which prior and noise are chosen anew.

With --train 5 the networks themselves are trained as well, by `single_fidelity` with energies and forces for 400 steps,
on what three ways of choosing have chosen for tangent_kernel in the first five repeats; this takes half an hour.

What is done is kept in --out, and the same line goes on from there. Usage:

    uv run python experiments/differentiable_validation/choose_clusters.py [--repeats 9] [--number 50] [--train 0]
        [--foundation FILE] [--out runs/choose_clusters]
"""

import argparse
import dataclasses
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

import jaxmlip as jm
from jaxmlip.files import write_json, write_text
from jaxmlip.systems.batches import make_samples
from jaxmlip.training.distill import distillation_problem, split_validation
from jaxmlip.training.evidence import fit_by_evidence
from jaxmlip.training.strategies.closed_form import Posterior
from jaxmlip.training.strategies.pair_difference import pair_posterior
from jaxmlip.validation.influence import greedy_choice

RESULTS = Path(__file__).parent / "results"
CLUSTERS = "clusters_5.0A.extxyz"
ISOLATED = {
    "mp0": {1: -1.158988237380981, 8: -2.0814614295959},
    "off23": {1: -13.571964772646918, 8: -2043.933693071156},
}
"""Energies of isolated atoms, eV."""

STRATEGIES = ("tangent_kernel", "pair_difference")
ARMS = ("random", "energy spread", "force spread", "bulk forces", "bulk energy", "least")
TRAINED = ("random", "force spread", "bulk forces")
"""Arms for which networks are trained too."""

METRICS = {
    "force_rmse_meV_A": "force RMSE, meV/Å",
    "energy_mean_meV_H2O": "mean energy error, absolute, meV/H2O",
    "energy_std_meV_H2O": "energy RMSE, mean removed, meV/H2O",
}


def frames(data: Path, file: str, level: str, index: str = ":") -> list[jm.Frame]:
    """Labelled frames of a file."""
    keys: dict[str, Any] = {"energy_key": f"{level}_energy", "forces_key": f"{level}_forces"}
    return jm.read_frames(data / file, index=index, **keys)


def references(level: str) -> np.ndarray:
    """[119], of isolated atoms, eV."""
    table = np.zeros(119)
    table[list(ISOLATED[level])] = list(ISOLATED[level].values())
    return table


def distilled(data: Path, out: Path) -> jm.Potential:
    """A student of MACE-MP-0 on all clusters and bulk frames 0 to 4; ten minutes on one core."""
    path = out / "foundation.jaxmlip"
    if not path.exists():
        low = [*frames(data, "bulk.extxyz", "mp0", ":5"), *frames(data, CLUSTERS, "mp0")]
        training, validation = split_validation(low, 0.02, 0)
        model = jm.Equivariant(channels=32, l_max=2, message_l=0, correlation=3, layers=2, cutoff=5.0)
        settings = jm.TrainingSettings(
            epochs=20, batch_size=4, tiers=2, validation_every=2, energy_weight=40, forces_weight=10
        )
        problem = distillation_problem(model, training, validation, references("mp0"), settings=settings)
        jm.save(jm.train(problem, settings, folder=out / "foundation").potential, path)
    return jm.load(path)


class Model:
    """A closed form, with the derivatives of all clusters and of the bulk, which do not depend on any label.

    Attributes:
        template: a posterior whose labels are replaced.
        features: derivatives of the energies of all clusters by each block of weights.
        labels: [clusters], MACE-OFF23 − MACE-MP-0 beyond isolated atoms, eV; only those of chosen clusters are used.
        sizes: [clusters], atoms.
        forces, energies: of bulk frames 0 to 4.
        seen_anew: the same forces along other directions, for what is expected of a choice.
        own_forces: of all clusters, along `DIRECTIONS` random directions each.
    """

    DIRECTIONS = 4

    def __init__(self, data: Path, foundation: jm.Trainable, make: Callable[..., Posterior]) -> None:
        high, low = (frames(data, CLUSTERS, level) for level in ("off23", "mp0"))
        atoms = [frame.atoms for frame in high]
        beyond = [
            np.array([f.energy - references(level)[f.atoms.numbers].sum() for f in each])
            for level, each in (("off23", high), ("mp0", low))
        ]
        self.labels, self.sizes = beyond[0] - beyond[1], np.array([len(each) for each in atoms], np.float64)
        foundation = foundation.with_references(references("off23"))
        samples = make_samples(low, foundation.cutoff, foundation.inner_cutoff, references("mp0"))
        # Which arrays have any influence is seen from structures; the labels of this posterior are never used.
        self.template = make(foundation, samples[:50])
        _, self.features = self.template.energy_features([sample.graph for sample in samples])
        unlabelled = [frame.atoms for frame in frames(data, "bulk.extxyz", "mp0", ":5")]
        self.forces = jm.Targets.forces(self.template, unlabelled, directions=16)
        self.seen_anew = jm.Targets.forces(self.template, unlabelled, directions=16, seed=1)
        self.energies = jm.Targets.energies(self.template, unlabelled)
        self.own_forces = jm.Targets.forces(self.template, atoms, directions=self.DIRECTIONS)

    def rows(self, places: np.ndarray) -> list[np.ndarray]:
        """Derivatives of the energies of clusters."""
        return [block[places] for block in self.features]

    def posterior(self, places: np.ndarray) -> Posterior:
        """What the energies of clusters say."""
        linear = fit_by_evidence(self.rows(places), self.labels[places], self.sizes[places])
        return dataclasses.replace(self.template, linear=linear)


def models(data: Path, foundation: jm.Trainable, strategy: str) -> list[Model]:
    """Of a strategy; the evidence of the labels chooses between them."""
    if strategy == "tangent_kernel":
        return [Model(data, foundation, jm.tangent_posterior)]
    how = jm.PairDifference()
    return [
        Model(data, foundation, functools.partial(pair_posterior, cutoff=cutoff, length_scales=how.length_scales))
        for cutoff in how.cutoffs
    ]


def most_probable(of: list[Model], places: np.ndarray) -> tuple[Model, Posterior]:
    """The model whose evidence is largest for the labels of these clusters."""
    found = [(model, model.posterior(places)) for model in of]
    return max(found, key=lambda pair: pair[1].linear.log_evidence)


def chosen(model: Model, posterior: Posterior, rest: np.ndarray, number: int, seed: int) -> dict[str, Any]:
    """Places of clusters by each way of choosing, and the force error of the bulk that is expected after each."""
    linear, rows = posterior.linear, model.rows(rest)
    among, noise = linear.covariance_of(rows, rows), linear.noise**2 * model.sizes[rest]
    forces, energies = (each.covariance(linear, rows) for each in (model.forces, model.energies))
    own = np.repeat(np.isin(np.arange(len(model.sizes)), rest), model.DIRECTIONS)
    squares = linear.predict([block[0][own] for block in model.own_forces.features])[1] ** 2
    places = {
        "random": np.random.default_rng(seed).choice(len(rest), number, replace=False),
        "energy spread": np.argsort(-np.diag(among) / model.sizes[rest])[:number],
        "force spread": np.argsort(-squares.reshape(len(rest), -1).mean(axis=1))[:number],
        "bulk forces": greedy_choice(among, forces, noise, model.forces, number)[0],
        "bulk energy": greedy_choice(among, energies, noise, model.energies, number)[0],
        "least": np.argsort(model.forces.squared(forces) / (np.diag(among) + noise))[:number],
    }
    before, cross = model.seen_anew.variance(linear), model.seen_anew.covariance(linear, rows)[0]
    expected = {"before": before}
    for arm, each in places.items():
        with_noise = among[np.ix_(each, each)] + np.diag(noise[each])
        explained = np.sum(cross[:, each].T * np.linalg.solve(with_noise, cross[:, each].T), axis=0)
        expected[arm] = before - float(model.seen_anew.weights @ explained)
    return {
        "places": {arm: rest[each].tolist() for arm, each in places.items()},
        "expected_force_rmse_meV_A": {arm: 1e3 * square**0.5 for arm, square in expected.items()},
    }


def tested(data: Path, potential: jm.Potential) -> dict[str, float]:
    """The final test: errors on bulk frames 5 to 14."""
    test = frames(data, "bulk.extxyz", "off23", "5:15")
    found = jm.compare(test, jm.predict(potential, [frame.atoms for frame in test]))
    energies = {"mean": 3 * abs(found.energy_mean_meV_atom), "std": 3 * found.energy_std_meV_atom}
    return {"force_rmse_meV_A": found.force_rmse_meV_A} | {f"energy_{k}_meV_H2O": v for k, v in energies.items()}


def drawn(clusters: int, draw: int, number: int) -> np.ndarray:
    """Places of the clusters that are labelled first; those of different draws are different."""
    return np.random.default_rng(0).permutation(clusters)[draw * number : (draw + 1) * number]


def trained(data: Path, foundation: jm.Potential, draw: int, places: list[int]) -> dict[str, float]:
    """Errors of a network trained on energies and forces of 90 of the clusters; the others decide what is kept."""
    high = frames(data, CLUSTERS, "off23")
    labelled = [high[n] for n in (*drawn(len(high), draw, len(places)), *places)]
    settings = jm.TrainingSettings(
        epochs=9, batch_size=2, tiers=2, learning_rate=0.005, energy_weight=40, forces_weight=10, seed=draw
    )
    return tested(data, jm.finetune(foundation, labelled, strategy=jm.SingleFidelity(), settings=settings))


def repeat(of: list[Model], data: Path, draw: int, number: int) -> dict[str, Any]:
    """One draw of labelled clusters, all ways of choosing the next, and errors on bulk frames 5 to 14."""
    labelled = drawn(len(of[0].sizes), draw, number)
    rest = np.setdiff1d(np.arange(len(of[0].sizes)), labelled)
    model, posterior = most_probable(of, labelled)
    result = chosen(model, posterior, rest, number, seed=100 + draw)
    result["errors"] = {"before": tested(data, posterior.potential())}
    for arm, places in result["places"].items():
        result["errors"][arm] = tested(data, most_probable(of, np.append(labelled, places))[1].potential())
    return result


def influences(of: list[Model], number: int) -> dict[str, Any]:
    """Changes of the bulk's mean energy (frames 0 to 4) without each label of the first repeat, meV/H2O."""
    labelled = drawn(len(of[0].sizes), 0, number)
    model, posterior = most_probable(of, labelled)
    rows = [block[0] for block in model.energies.features]
    whole, anew = posterior.linear.predict(rows)[0].mean(), []
    for place in range(number):
        without = model.posterior(np.delete(labelled, place)).linear
        anew.append(without.predict(rows)[0].mean() - whole)
    predicted = jm.influence(posterior, model.energies)
    return {
        "predicted_meV_H2O": (3e3 * predicted.changes.mean(axis=1)).tolist(),
        "fitted_anew_meV_H2O": (3e3 * np.array(anew)).tolist(),
        "effective_parameters": predicted.effective_parameters,
    }


def mean_and_error(values: list[float]) -> str:
    """Mean over repeats ± its standard error."""
    error = np.std(values, ddof=1) / len(values) ** 0.5
    digits = int(np.clip(1 - np.floor(np.log10(error)), 0, 4)) if error > 0 else 1
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"


def difference(values: list[float], random: list[float]) -> str:
    """Against random choice in the same repeats, in standard errors of the mean difference; 95 % of Student's t."""
    away = np.subtract(values, random)
    t = away.mean() / (away.std(ddof=1) / len(away) ** 0.5)
    limit = scipy.stats.t.ppf(0.975, len(away) - 1)
    word = "cannot tell" if abs(t) < limit else "better" if t < 0 else "worse"
    return f"{t:+.1f} σ, {word}"


def row(begin: list[str], arm: str, errors: list[dict[str, Any]]) -> str:
    """Errors of one arm in all repeats."""
    cells = list(begin)
    for metric in METRICS:
        values, random = ([each[name][metric] for each in errors] for name in (arm, "random"))
        cells += [mean_and_error(values), "–" if arm in ("before", "random") else difference(values, random)]
    return f"| {' | '.join(cells)} |"


def table(results: dict[str, Any]) -> str:
    """All strategies, metrics and arms, for people."""
    heads = ["expected force error", *(head for title in METRICS.values() for head in (title, "against random"))]
    lines = [f"| strategy | clusters | {' | '.join(heads)} |", "|" + "---|" * (2 + len(heads))]
    for strategy, content in results["strategies"].items():
        draws = content["repeats"]
        for arm in ("before", *ARMS):
            expected = mean_and_error([draw["expected_force_rmse_meV_A"][arm] for draw in draws])
            lines.append(row([strategy, arm, expected], arm, [draw["errors"] for draw in draws]))
    lines += [row(["trained", arm, "–"], arm, results["trained"]) for arm in TRAINED if results["trained"]]
    lines += ["", "| strategy | effective parameters of 50 labels | influence against fits anew: correlation |"]
    lines.append("|---|---|---|")
    for strategy, content in results["strategies"].items():
        moved = content["influence"]
        correlation = np.corrcoef(moved["predicted_meV_H2O"], moved["fitted_anew_meV_H2O"])[0, 1]
        lines.append(f"| {strategy} | {moved['effective_parameters']:.1f} | {correlation:.2f} |")
    return "\n".join(lines) + "\n"


def options_given() -> argparse.Namespace:
    """The command line, refused where nothing could come of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=9, help="disjoint draws of labelled clusters")
    parser.add_argument("--number", type=int, default=50, help="clusters labelled first, and next")
    parser.add_argument("--train", type=int, default=0, help="repeats for which networks are trained too")
    parser.add_argument("--foundation", type=Path, help="a student of MACE-MP-0; by default one is distilled")
    parser.add_argument("--out", type=Path, default=Path("runs/choose_clusters"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the summary is written")
    options = parser.parse_args()
    if "JAXMLIP_DATA" not in os.environ:
        parser.error("JAXMLIP_DATA is not set; export the folder that has ice_maceoff/ in it.")
    if not 2 <= options.repeats <= 600 // options.number - 1:
        parser.error(f"--repeats must be from 2 to {600 // options.number - 1}, for 600 clusters are there.")
    if options.train and not 2 <= options.train <= options.repeats:
        parser.error(f"--train must be 0, or from 2 to {options.repeats}, the number of repeats.")
    return options


def main() -> None:
    """Do what is not done yet, and write the results."""
    options = options_given()
    options.out.mkdir(parents=True, exist_ok=True)
    data = Path(os.environ["JAXMLIP_DATA"]) / "ice_maceoff"

    @functools.cache
    def foundation() -> jm.Trainable:
        found = distilled(data, options.out) if options.foundation is None else jm.load(str(options.foundation))
        if not isinstance(found, jm.Trainable):
            raise SystemExit(f"{options.foundation} cannot be trained; give a student of MACE-MP-0.")
        return found

    @functools.cache
    def made(strategy: str) -> list[Model]:
        return models(data, foundation(), strategy)

    def kept(name: str, make: Callable[[], Any]) -> Any:
        path = options.out / f"{name}-{options.number}.json"
        if not path.exists():
            write_json(path, make())
            print(name, flush=True)
        return json.loads(path.read_text())

    results: dict[str, Any] = {"number": options.number, "strategies": {}, "trained": []}
    for strategy in STRATEGIES:
        draws = [
            kept(f"{strategy}-{n}", lambda n=n, s=strategy: repeat(made(s), data, n, options.number))
            for n in range(options.repeats)
        ]
        moved = kept(f"{strategy}-influence", lambda s=strategy: influences(made(s), options.number))
        short = [{key: value for key, value in draw.items() if key != "places"} for draw in draws]
        results["strategies"][strategy] = {"repeats": short, "influence": moved}
        made.cache_clear()
    for n in range(options.train):
        places = json.loads((options.out / f"{STRATEGIES[0]}-{n}-{options.number}.json").read_text())["places"]
        results["trained"].append(
            {
                arm: kept(f"trained-{arm}-{n}", lambda n=n, p=places[arm]: trained(data, foundation(), n, p))
                for arm in TRAINED
            }
        )
    options.results.mkdir(parents=True, exist_ok=True)
    write_json(options.results / "choose_clusters.json", results)
    write_text(options.results / "choose_clusters.md", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
