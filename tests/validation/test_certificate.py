"""Predicted force errors: known laws come back, intervals hold, and no force of the high fidelity has a part in it."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
from ase import Atoms
from matplotlib.lines import Line2D
from water_pairs import HIGH, LOW, water_pairs

from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.evaluation import label, predict
from jaxmlip.potentials.potential import Potential
from jaxmlip.study.plots import certificates
from jaxmlip.systems.clusters import cut_clusters
from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.ice import ice_ih
from jaxmlip.training.problem import TrainingProblem
from jaxmlip.training.strategies.pair_difference import PairDifference
from jaxmlip.validation.certificate import Difference, SurrogateFit, certified, force_error_certificate

MODEL = Equivariant(channels=2, l_max=0, correlation=1, layers=1, cutoff=4.0, radial_mlp=(4,))
STRATEGY = PairDifference(cutoffs=(4.0,))

pytestmark = pytest.mark.filterwarnings("ignore:H and O occur in one ratio only")


def fits(number: int, rng: np.random.Generator, *, spread: float, inverse_length: float = 4.0) -> list[SurrogateFit]:
    """Surrogates that obey the law: ln(found / s) is normal about ln 1.5."""
    within, noise = 0.05 * rng.lognormal(0.0, 1.0, number), 0.01 * rng.lognormal(0.0, 1.0, number)
    logs = np.log(1.5) + spread * rng.normal(size=number)
    found = np.hypot(within, noise * inverse_length) * np.exp(logs)
    return [SurrogateFit(str(k), *map(float, row)) for k, row in enumerate(zip(within, noise, found, strict=True))]


def test_the_law_comes_back() -> None:
    """Without scatter, length and factor are those of the surrogates, and so is the prediction."""
    *rest, unseen = fits(9, np.random.default_rng(0), spread=1e-3)
    found = certified(unseen.within, unseen.noise, rest)
    assert found.inverse_length == pytest.approx(4.0, rel=0.1)
    assert found.predicted == pytest.approx(unseen.found, rel=0.03)
    assert found.coverage > 0.5
    again = found.logarithm.interval(found.level)
    np.testing.assert_allclose(np.exp(again), [found.low, found.high])


@pytest.mark.parametrize("level", [0.68, 0.9])
def test_intervals_hold(level: float) -> None:
    """Of 200 worlds of eight surrogates: the truth is another one of the same law."""
    rng, inside, reported = np.random.default_rng(1), [], []
    for _ in range(200):
        *rest, unseen = fits(9, rng, spread=0.5)
        found = certified(unseen.within, unseen.noise, rest, level)
        inside.append(found.low <= unseen.found <= found.high)
        reported.append(found.coverage)
    # The length is chosen for the least scatter, which costs some of the width.
    assert level - 0.13 < np.mean(inside) < level + 0.06
    assert np.mean(reported) == pytest.approx(np.mean(inside), abs=0.06)


@pytest.fixture(scope="module")
def structures() -> list[Atoms]:
    ice = ice_ih(96, seed=0)
    ice.rattle(0.06, seed=1)
    return cut_clusters([ice], radius=3.2, number=27, seed=2)


@pytest.fixture(scope="module")
def foundation() -> EquivariantPotential:
    return MODEL.build((1, 8), average_neighbors=8.0, references=np.asarray(LOW.references), scale=1e-3)


def problem_of(foundation: EquivariantPotential, clusters: list[Atoms], high: Potential) -> TrainingProblem:
    labelled, cheap = (label(clusters, potential) for potential in (high, LOW))
    return STRATEGY.problem(foundation, labelled, validation=labelled, low=cheap, labels="energy")


def others() -> dict[str, tuple[Potential, Potential]]:
    """Waters of other depths and lengths: pairs, as the truth is."""
    rng = np.random.default_rng(0)
    changes = [(0.1 * rng.normal(size=3), 0.02 * rng.normal(size=3)) for _ in range(5)]
    return {
        str(k): (water_pairs(np.array([0.3, 4.5, 0.2]) * (1 + a), np.array([2.0, 0.97, 2.8]) * (1 + b)), LOW)
        for k, (a, b) in enumerate(changes)
    }


def test_an_unseen_water(foundation: EquivariantPotential, structures: list[Atoms]) -> None:
    """The force error of the correction, which nothing has seen, lies in the interval; absurd forces change nothing."""
    clusters, unseen = structures[:24], structures[24:]
    problem = problem_of(foundation, clusters, HIGH)
    found = force_error_certificate(STRATEGY, problem, unseen, others(), draws=8)
    corrected = STRATEGY.posterior(problem).potential()
    forces = [np.concatenate([f.forces for f in predict(p, unseen)]) for p in (corrected, foundation, HIGH, LOW)]
    error = np.sqrt(np.mean((forces[0] - forces[1] - (forces[2] - forces[3])) ** 2))
    assert found.low < error < found.high
    assert found.high / found.low < 30
    assert f"{1e3 * found.predicted:.0f} meV/Å, 90 %" in str(found)
    absurd = [dataclasses.replace(f, forces=np.full_like(f.forces, 1e9)) for f in label(clusters, HIGH)]
    cheap: list[Frame] = label(clusters, LOW)
    blind = STRATEGY.problem(foundation, absurd, validation=absurd, low=cheap, labels="energy")
    differences = {name: _known(pair, clusters, unseen) for name, pair in others().items()}
    again = force_error_certificate(STRATEGY, blind, unseen, differences, draws=8)
    np.testing.assert_allclose(again.predicted, found.predicted, rtol=1e-3)


def _known(pair: tuple[Potential, Potential], clusters: list[Atoms], structures: list[Atoms]) -> Difference:
    """A surrogate as labels."""
    to, start = ([*label(clusters, each), *label(structures, each)] for each in pair)
    number = len(clusters)
    return Difference(
        np.array([a.energy - b.energy for a, b in zip(to[:number], start[:number], strict=True)]),
        np.concatenate([a.forces - b.forces for a, b in zip(to[number:], start[number:], strict=True)]),
    )


def test_nonsense_is_refused(foundation: EquivariantPotential, structures: list[Atoms]) -> None:
    problem = problem_of(foundation, structures[:12], HIGH)
    with pytest.raises(ValueError, match="There are 0 surrogates, and an interval needs 5"):
        force_error_certificate(STRATEGY, problem, structures[24:], {})
    with pytest.raises(ValueError, match=r"between 0 and 1, not 1\.5"):
        force_error_certificate(STRATEGY, problem, structures[24:], others(), level=1.5)
    with pytest.raises(ValueError, match="no structures"):
        force_error_certificate(STRATEGY, problem, [], others())
    with pytest.raises(ValueError, match="surrogate same has the forces of what it is lifted from"):
        force_error_certificate(STRATEGY, problem, structures[24:], {"same": (LOW, LOW), **others()})
    short = Difference(np.zeros(3), np.ones((9, 3)))
    with pytest.raises(ValueError, match=r"surrogate short has 3 energies and forces \(9, 3\)"):
        force_error_certificate(STRATEGY, problem, structures[24:], {"short": short, **others()})


def test_the_figure_shows_the_numbers() -> None:
    *rest, unseen = fits(9, np.random.default_rng(0), spread=0.3)
    found = certified(unseen.within, unseen.noise, rest)
    figure, ax = plt.subplots()
    certificates(ax, {"one": [(unseen.found, found)]})
    line, *_ = ax.containers[0].get_children()
    assert isinstance(line, Line2D)
    drawn = line.get_xydata()
    np.testing.assert_allclose(np.ravel(np.asarray(drawn)), [1e3 * found.predicted, 1e3 * unseen.found])
    plt.close(figure)
