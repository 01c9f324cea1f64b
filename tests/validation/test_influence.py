"""What labels do, and would do, to targets: against refitting without or with them, and against known answers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from ase import Atoms
from made_runs import as_run

from jaxmlip.observables.estimate import Status
from jaxmlip.observables.structure import RDF
from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.evaluation import label, predict
from jaxmlip.potentials.potential import reference_energy
from jaxmlip.simulation.trajectory import Run
from jaxmlip.systems.batches import Sample, make_samples
from jaxmlip.systems.clusters import cut_clusters
from jaxmlip.systems.graph import graph_from_atoms
from jaxmlip.systems.ice import ice_ih
from jaxmlip.training.evidence import LinearPosterior
from jaxmlip.training.strategies.closed_form import Posterior, counts_in, labels_of
from jaxmlip.training.strategies.pair_difference import pair_posterior
from jaxmlip.training.strategies.tangent import TangentPosterior, tangent_features, tangent_posterior
from jaxmlip.validation.averages import frame_states
from jaxmlip.validation.gradients import Gradient, gradient, mean_of_frames
from jaxmlip.validation.influence import Targets, choose_labels, greedy_choice, influence

MODEL = Equivariant(channels=4, l_max=1, correlation=2, layers=1, cutoff=4.0, radial_mlp=(8,))
LABELS, WRONG, KELVIN = 12, 5, 250.0
RDF_OO = RDF("O", "O", r_max=4.0, bins=6, smearing=0.2)


@pytest.fixture(scope="module")
def ice() -> Atoms:
    ice = ice_ih(16, seed=0)
    ice.rattle(0.05, seed=1)
    return ice


@pytest.fixture(scope="module")
def clusters(ice: Atoms) -> list[Atoms]:
    """Of about five molecules."""
    shaken = [ice.copy() for _ in range(3)]
    for seed, atoms in enumerate(shaken):
        atoms.rattle(0.05, seed=10 + seed)
    return cut_clusters(shaken, radius=3.2, number=40, seed=2)


@pytest.fixture(scope="module")
def foundation() -> EquivariantPotential:
    return MODEL.build((1, 8), average_neighbors=8.0, scale=0.3)


@pytest.fixture(scope="module")
def samples(foundation: EquivariantPotential, clusters: list[Atoms]) -> list[Sample]:
    """Energies of a network whose parameters are others, with noise."""
    rng = np.random.default_rng(3)
    moved = jax.tree.map(lambda leaf: (leaf + 0.1 * rng.normal(size=leaf.shape)).astype(leaf.dtype), foundation.params)
    found = make_samples(label(clusters, foundation.with_params(moved)), foundation.cutoff, 0.0, foundation.references)
    return [dataclasses.replace(s, energy=s.energy + 0.005 * rng.normal() * s.graph.n_atoms**0.5) for s in found]


@pytest.fixture(scope="module")
def tangent(foundation: EquivariantPotential, samples: list[Sample]) -> Posterior:
    return tangent_posterior(foundation, samples[:LABELS])


@pytest.fixture(scope="module")
def pairs(foundation: EquivariantPotential, samples: list[Sample]) -> Posterior:
    return pair_posterior(foundation, samples[:LABELS], cutoff=4.0, length_scales=(0.5,))


@pytest.fixture(scope="module")
def run(ice: Atoms) -> Run:
    """Frames of an ice that trembles."""
    rng = np.random.default_rng(4)
    positions = ice.positions + 0.1 * rng.normal(size=(8, 4, len(ice), 3))
    return as_run(positions, ice.numbers, ice.cell.array)


def made_up(seed: int = 0, labels: int = 7, targets: int = 5) -> tuple[LinearPosterior, Targets, list[np.ndarray]]:
    """A posterior with more weights than labels, targets, and features of four more labels."""
    rng = np.random.default_rng(seed)

    def features(rows: int) -> list[np.ndarray]:
        return [rng.normal(size=(rows, 2)), rng.normal(size=(rows, 12))]

    sizes = rng.integers(3, 9, labels).astype(float)
    linear = LinearPosterior(features(labels), rng.normal(size=labels), sizes, np.array([1.5, 0.4]), 0.3, 0.0)
    return linear, Targets.exact(features(targets)), features(4)


def known_with(linear: LinearPosterior, features: Sequence[np.ndarray], sizes: np.ndarray) -> LinearPosterior:
    """The posterior with further labels, whose values do not matter to variances."""
    return dataclasses.replace(
        linear,
        features=[np.concatenate(pair) for pair in zip(linear.features, features, strict=True)],
        labels=np.append(linear.labels, np.zeros(len(sizes))),
        sizes=np.append(linear.sizes, sizes),
    )


def errors_expected(linear: LinearPosterior, targets: Targets) -> float:
    """Mean variance of exact targets."""
    return float(np.mean(linear.predict([block[0] for block in targets.features])[1] ** 2))


def test_changes_are_those_of_refitting() -> None:
    """Targets, their expected errors and the squared error without each label: in the linear model to rounding."""
    linear, targets, _ = made_up()
    found, rows = influence(linear, targets), [block[0] for block in targets.features]
    whole, wrong = linear.predict(rows)[0], np.linspace(-1.0, 2.0, 5)
    for place in range(len(linear.labels)):
        without = linear.without([place])
        change = without.predict(rows)[0] - whole
        np.testing.assert_allclose(found.changes[place], change, rtol=1e-9, atol=1e-12)
        fall = np.mean(wrong**2 - (wrong + change) ** 2)
        assert found.harm(wrong)[place] == pytest.approx(fall, rel=1e-9)
        lost = errors_expected(without, targets) - errors_expected(linear, targets)
        assert found.variance_kept[place] == pytest.approx(lost, rel=1e-8)
        assert targets.variance(without) == pytest.approx(errors_expected(without, targets), rel=1e-12)
        ours = [block[[place]] for block in linear.features]
        deviation = np.sqrt(without.predict(ours)[1][0] ** 2 + linear.noise**2 * linear.sizes[place])
        assert found.scores[place] == pytest.approx(found.errors[place] / deviation, rel=1e-9)


def test_leverages_are_derivatives_of_fits() -> None:
    linear, targets, _ = made_up(1)
    found = influence(linear, targets)
    for place, leverage in enumerate(found.leverages):
        raised = dataclasses.replace(linear, labels=linear.labels + np.eye(len(linear.labels))[place])
        fits = [each.predict(linear.features)[0][place] for each in (raised, linear)]
        assert leverage == pytest.approx(fits[0] - fits[1], rel=1e-9)
    assert 0 < found.effective_parameters < len(linear.labels)


def test_gains_of_a_choice_are_exact() -> None:
    """Each label is the best that can be added to those before it, and reduces the expected error by what is said."""
    linear, targets, features = made_up(2)
    sizes = np.array([3.0, 5.0, 4.0, 6.0])
    cross = targets.covariance(linear, features)
    places, gains = greedy_choice(
        linear.covariance_of(features, features), cross, linear.noise**2 * sizes, targets, number=3
    )
    known, left = linear, [0, 1, 2, 3]
    for place, gain in zip(places, gains, strict=True):
        after = {n: known_with(known, [block[[n]] for block in features], sizes[[n]]) for n in left}
        best = min(left, key=lambda n: errors_expected(after[n], targets))
        assert place == best
        assert gain == pytest.approx(errors_expected(known, targets) - errors_expected(after[best], targets), rel=1e-8)
        known = after[best]
        left.remove(best)


def test_what_says_the_same_is_not_chosen_twice() -> None:
    """Of three copies of the best candidate one is taken; single scores would take all of them."""
    linear, targets, features = made_up(3)
    linear = dataclasses.replace(linear, noise=0.01)
    noise = np.full(6, linear.noise**2)
    first = greedy_choice(
        linear.covariance_of(features, features), targets.covariance(linear, features), noise[:4], targets, number=1
    )[0]
    copied = [np.concatenate([block, block[first], block[first]]) for block in features]
    among, cross = linear.covariance_of(copied, copied), targets.covariance(linear, copied)
    single = np.argsort(-targets.squared(cross) / (np.diag(among) + noise))[:3]
    assert set(single) == {int(first[0]), 4, 5}
    assert len({int(first[0]), 4, 5} & set(greedy_choice(among, cross, noise, targets, number=3)[0])) == 1


def test_noise_of_gradients_adds_nothing() -> None:
    """Expected errors of noisy derivatives in eight groups are those of the exact ones, on average over 400 draws."""
    linear, exact, features = made_up(4, targets=1)
    rng, found, gains, naive = np.random.default_rng(0), [], [], []
    for _ in range(400):
        noisy = [block + rng.normal(size=(8, *block.shape[1:])) for block in exact.features]
        targets = Targets(noisy, exact.weights)
        found.append(targets.variance(linear))
        gains.append(targets.squared(targets.covariance(linear, features)))
        naive.append(Targets.exact([block.mean(axis=0) for block in noisy]).variance(linear))
    known = np.append(exact.squared(exact.covariance(linear, features)), exact.variance(linear))
    drawn = np.column_stack([gains, found])
    error = drawn.std(axis=0) / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean(axis=0) - known) < 3.5 * error).all()
    assert np.mean(naive) - exact.variance(linear) > 10 * error[-1]


@pytest.mark.parametrize("kind", ["tangent", "pairs"])
def test_forces_move_as_those_of_deployed_potentials(
    kind: str, ice: Atoms, clusters: list[Atoms], request: Any
) -> None:
    """Without a label, of a cluster and of bulk ice: in dual form, and by the potentials with and without it."""
    posterior: Posterior = request.getfixturevalue(kind)
    found = influence(posterior, Targets.forces(posterior, [clusters[-1], ice], directions=6, seed=1))
    rng = np.random.default_rng(1)
    place = int(np.argmax(np.abs(found.scores)))
    changes = found.changes[place].reshape(2, 6)
    with_it, without = (predict(p.potential(), [clusters[-1], ice]) for p in (posterior, posterior.without([place])))
    for one, other, change in zip(with_it, without, changes, strict=True):
        ways = rng.choice([-1.0, 1.0], (6, *one.forces.shape)) / np.sqrt(one.forces.size)
        known = np.tensordot(ways, other.forces - one.forces, 2)
        np.testing.assert_allclose(change, known, atol=2e-3 * np.abs(known).max())


def test_expected_errors_of_forces_are_those_of_the_ensemble(tangent: Posterior, ice: Atoms) -> None:
    """Along random directions, and in all components of potentials drawn from the posterior."""
    expected = Targets.forces(tangent, [ice], directions=48).variance(tangent.linear)
    ensemble = tangent.ensemble(24, seed=2)
    members = [jax.tree.map(lambda leaf, k=k: leaf[k], ensemble) for k in range(24)]
    forces = np.array([predict(member, [ice])[0].forces for member in members])
    assert expected == pytest.approx(np.mean(forces.var(axis=0, ddof=1)), rel=0.3)


def test_energies_per_atom(tangent: Posterior, ice: Atoms) -> None:
    """With a label less, by deployed potentials."""
    found = influence(tangent, Targets.energies(tangent, [ice]))
    place = int(np.argmax(np.abs(found.changes)))
    change = [predict(p.potential(), [ice])[0].energy for p in (tangent.without([place]), tangent)]
    assert found.changes[place, 0] == pytest.approx((change[0] - change[1]) / len(ice), rel=1e-2)


def test_a_wrong_label_is_found(
    foundation: EquivariantPotential, samples: list[Sample], tangent: Posterior, ice: Atoms
) -> None:
    """Half an electronvolt too much: it stands out, and is what did most harm to the energy of the bulk."""
    broken = [dataclasses.replace(s, energy=s.energy + 0.5 * (n == WRONG)) for n, s in enumerate(samples[:LABELS])]
    linear = dataclasses.replace(tangent.linear, labels=tangent.linear.labels + 0.5 * (np.arange(LABELS) == WRONG))
    posterior = dataclasses.replace(tangent, linear=linear)
    targets = Targets.energies(posterior, [ice])
    found = influence(posterior, targets)
    assert np.argmax(np.abs(found.scores)) == WRONG
    assert abs(found.scores[WRONG]) > 4
    right, wrong = (predict(p.potential(), [ice])[0].energy / len(ice) for p in (tangent, posterior))
    assert np.argmax(found.harm(np.array([wrong - right]))) == WRONG
    # The evidence calls some of it noise, and it stands out still.
    refitted = tangent_posterior(foundation, broken)
    assert np.argmax(np.abs(influence(refitted, Targets.energies(refitted, [ice])).scores)) == WRONG


@pytest.mark.parametrize("kind", ["tangent", "pairs"])
def test_derivatives_by_parameters_become_those_by_weights(kind: str, samples: list[Sample], request: Any) -> None:
    """Of an energy: by automatic differentiation of the deployed potential, and as the posterior has them."""
    posterior: Posterior = request.getfixturevalue(kind)
    potential, graph = posterior.potential(), samples[0].graph
    slope = jax.jit(jax.grad(lambda params: potential.with_params(params).energy(graph)[0]))(potential.params)
    for one, other in zip(posterior.by_weights(slope), posterior.features([graph])[1], strict=True):
        np.testing.assert_allclose(one, other[0], rtol=1e-3, atol=1e-5 * np.abs(other).max())


def test_an_average_moves_as_its_reweighting(tangent: Posterior, run: Run) -> None:
    """Without a label, to first order: the RDF of given frames, reweighted to the potential without it."""
    posterior = tangent
    potential, frames = posterior.potential(), frame_states(run, potential=posterior.potential())
    slope = gradient(run, potential, RDF_OO, temperature_K=KELVIN, equilibration=0)
    targets = Targets.average(posterior, slope)
    found = influence(posterior, targets)
    assert found.changes.shape == (LABELS, RDF_OO.bins)

    place = int(np.argmax(np.abs(found.changes).sum(axis=1)))
    small = dataclasses.replace(  # a hundredth of the label's removal, which is linear
        posterior, linear=dataclasses.replace(posterior.linear, labels=_nearly_without(posterior, place, 0.01))
    )
    mean = jax.jit(lambda other: mean_of_frames(other, RDF_OO, frames, KELVIN, potential))
    moved, still = (np.asarray(mean(each), np.float64) for each in (small.potential(), potential))
    known = 100.0 * (moved - still) * 32 / 31
    np.testing.assert_allclose(found.changes[place], known, atol=0.05 * np.abs(known).max())


def _nearly_without(posterior: Posterior, place: int, share: float) -> np.ndarray:
    """Labels of which one has gone a share of the way to where the others say it is: the same as its removal there."""
    labels = posterior.linear.labels.copy()
    labels[place] += share * posterior.linear.left_out()[place]
    return labels


def test_a_choice_from_structures(tangent: Posterior, clusters: list[Atoms], ice: Atoms) -> None:
    """Expected errors fall with each label, as those of a posterior that has it do; the wrong number is refused."""
    targets = Targets.forces(tangent, [ice], directions=4)
    chosen = choose_labels(tangent, clusters[LABELS:], targets, 5)
    assert len(set(chosen.places.tolist())) == 5
    assert (np.diff(chosen.variances) < 0).all()
    assert chosen.variances[0] == pytest.approx(targets.variance(tangent.linear))

    graphs = [graph_from_atoms(clusters[LABELS + n], tangent.foundation.cutoff) for n in chosen.places]
    _, features = tangent.energy_features(graphs)
    with_them = known_with(tangent.linear, features, np.array([g.n_atoms for g in graphs], float))
    assert chosen.variances[-1] == pytest.approx(targets.variance(with_them), rel=1e-6)


def test_retraining_a_network_does_what_is_predicted(
    foundation: EquivariantPotential, samples: list[Sample], ice: Atoms
) -> None:
    """The energy of bulk ice after trainings without each label: not linear any more, and predicted to first order."""
    labelled, known = samples[:LABELS], tangent_posterior(foundation, samples[:LABELS])
    whole, energy = trained(known, labelled, [], ice)
    posterior = tangent_posterior(whole, labelled, start=foundation)
    assert np.shape(posterior.linear.variances) == np.shape(known.linear.variances)
    scales = {"variances": known.linear.variances, "noise": known.linear.noise}
    posterior = dataclasses.replace(posterior, linear=dataclasses.replace(posterior.linear, **scales))
    predicted = influence(posterior, Targets.energies(posterior, [ice])).changes[:, 0]
    found = np.array([trained(known, labelled, [n], ice)[1] - energy for n in range(LABELS)])
    assert np.corrcoef(predicted, found)[0, 1] > 0.95
    assert np.abs(predicted - found).max() < 0.3 * np.abs(found).max()


def trained(
    known: TangentPosterior, samples: Sequence[Sample], without: Sequence[int], ice: Atoms
) -> tuple[EquivariantPotential, float]:
    """A network trained by Gauss–Newton's method with given prior and noise, and its energy of an ice in eV/atom."""
    start, linear = known.foundation, known.linear
    graphs = [sample.graph for sample in samples]
    counts, labels = counts_in(graphs)[:, list(known.elements)], labels_of(samples)
    change = jax.tree.map(np.zeros_like, start.params)
    for _ in range(10):
        potential = start.with_params(jax.tree.map(np.add, start.params, change))
        energies, features = tangent_features(potential, graphs)
        blocks, moved = [features[path] for path in known.arrays], known.by_weights(change)
        ahead = labels - energies + sum(x @ w for x, w in zip(blocks, moved, strict=True))
        step = dataclasses.replace(linear, features=[counts, *blocks], labels=ahead)
        at_start: Any = dataclasses.replace(known, linear=step).without(without)
        change = jax.tree.map(lambda now, next_: 0.5 * (now + next_), change, at_start.potential().change)
    potential = start.with_params(jax.tree.map(np.add, start.params, change))
    assert isinstance(potential, EquivariantPotential)
    references = at_start.potential().references[ice.numbers].sum() - reference_energy(potential, ice.numbers)
    return potential, (predict(potential, [ice])[0].energy + references) / len(ice)


def test_refuses_what_makes_no_sense(
    tangent: Posterior, pairs: Posterior, clusters: list[Atoms], ice: Atoms, run: Run
) -> None:
    targets = Targets.energies(tangent, [ice])
    with pytest.raises(ValueError, match="There are 2 candidates, of which 3 cannot be chosen"):
        choose_labels(tangent, clusters[:2], targets, 3)
    with pytest.raises(ValueError, match=r"Candidate 1 \(Cu\)"):
        choose_labels(tangent, [clusters[0], Atoms("Cu")], targets, 1)
    with pytest.raises(ValueError, match="no structures"):
        Targets.energies(tangent, [])
    with pytest.raises(ValueError, match="one direction at least, not 0"):
        Targets.forces(tangent, [ice], directions=0)
    with pytest.raises(ValueError, match="There are 1 targets, but errors of shape"):
        influence(tangent, targets).harm(np.zeros(2))
    alone = dataclasses.replace(tangent, elements=(8,))
    with pytest.raises(ValueError, match=r"Structure 0 .*no labelled structure has the element of atomic number 1"):
        Targets.energies(alone, [ice])


def test_refuses_gradients_of_other_potentials_and_noise(
    tangent: Posterior, pairs: Posterior, clusters: list[Atoms]
) -> None:
    rng = np.random.default_rng(5)
    params = tangent.foundation.params
    noise = jax.tree.map(lambda leaf: rng.normal(size=(8, *leaf.shape)), params)
    whole = jax.tree.map(lambda leaf: leaf.mean(axis=0), noise)
    slope = Gradient(whole, whole, noise, "covariance", Status.OK, 100.0)
    with pytest.raises(ValueError, match=r"take it at posterior\.potential"):
        Targets.average(pairs, slope)
    with pytest.raises(ValueError, match=r"take it at posterior\.potential"):
        Targets.average(tangent, dataclasses.replace(slope, parts=(noise, noise)))
    with pytest.raises(ValueError, match="A forward-mode gradient"):
        Targets.average(tangent, dataclasses.replace(slope, parts=None))
    opposite = jax.tree.map(lambda leaf: np.concatenate([leaf[:1], -leaf[:1]]), noise)
    with pytest.raises(ValueError, match="is noise"):
        choose_labels(tangent, clusters, Targets.average(tangent, dataclasses.replace(slope, parts=opposite)), 2)
    wider = Equivariant(channels=6, l_max=0, correlation=1, layers=1, cutoff=4.0).build((1, 8), average_neighbors=8.0)
    with pytest.raises(ValueError, match="The start of the training has other parameters"):
        tangent_posterior(tangent.foundation, [], start=wider)
