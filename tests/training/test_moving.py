"""What moves in fine-tuning moves, what stays does not by a single bit, and what is deployed is what was trained."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from water_pairs import LOW

from jaxmlip.potentials.adapters import TrainableReferences, low_rank, trainable_references
from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.trainable import Trainable
from jaxmlip.training.problem import Trained, TrainingSettings
from jaxmlip.training.strategies.continued import Continued, SingleFidelity
from jaxmlip.training.strategies.moving import adapted
from jaxmlip.training.trainer import train

MODEL = Equivariant(channels=4, l_max=0, correlation=1, layers=1, cutoff=4.0, radial_mlp=(16,))
SETTINGS = TrainingSettings(epochs=10, batch_size=8, learning_rate=5e-4, ema_decay=0.9)

pytestmark = pytest.mark.filterwarnings("ignore:H and O occur in one ratio only")


@pytest.fixture(scope="module")
def foundation() -> EquivariantPotential:
    """Random parameters: where training starts does not matter here."""
    return MODEL.build((1, 8), average_neighbors=8.0, references=np.asarray(LOW.references), scale=0.3)


def leaves(potential) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(potential.params, sep="/").items()}


def trained(strategy: Continued, foundation, high, settings=SETTINGS) -> Trained:
    """In steps on all frames, which are the validation set too, so that the last parameters are the best."""
    problem = strategy.problem(foundation, high[:8], validation=high[:8], labels="energy", settings=settings)
    result = train(problem, settings, progress=False)
    assert result.best_epoch > 0, "else nothing has been shown to move"
    return result


def assert_equal_energies(potential, deployed, frames) -> None:
    """Of a potential as it was trained and as it is deployed; references in float64 on the host."""
    structures = [frame.atoms for frame in frames]
    for a, b in zip(predict(potential, structures), predict(deployed, structures), strict=True):
        np.testing.assert_allclose(a.energy, b.energy, rtol=0, atol=5e-5)
        np.testing.assert_allclose(a.forces, b.forces, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("moves", "staying"),
    [("everything", ()), ("readouts", ("embedding", "inter", "prod")), ("all_but_embedding", ("embedding",))],
)
def test_what_stays_does_not_move_by_a_bit(foundation, high, moves, staying):
    strategy = SingleFidelity(moves=moves)
    deployed = strategy.deploy(trained(strategy, foundation, high))
    before = leaves(foundation)
    for path, leaf in leaves(deployed).items():
        assert (leaf == before[path]).all() == path.startswith(staying) if staying else (leaf != before[path]).any()


def test_low_rank_updates_and_references_that_move(foundation, high):
    """They start from the foundation bit for bit; matrices change by their rank, references by the offsets, no more."""
    strategy = SingleFidelity(references="trainable", moves="low_rank", rank=2)
    result = trained(strategy, foundation, high)
    assert isinstance(result.problem.potential, Trainable)
    start = result.problem.potential.select_head(0)
    jax.tree.map(np.testing.assert_array_equal, start.params, foundation.params)
    assert isinstance(result.potential, TrainableReferences)

    deployed, before = strategy.deploy(result), leaves(foundation)
    assert isinstance(deployed, EquivariantPotential)
    assert jax.tree.structure(deployed) == jax.tree.structure(foundation.replace(references=deployed.references))
    for path, leaf in leaves(deployed).items():
        columns = leaf.shape[-1]
        change = (leaf.astype(np.float64) - before[path]).reshape(-1, columns)
        large = leaf.ndim > 1 and min(change.shape) > 2
        assert (path in result.potential.params["potential"]) == large
        rank = np.linalg.matrix_rank(change, tol=1e-5)
        assert 0 < rank <= 2 if large else rank == 0
        if not large:
            np.testing.assert_array_equal(leaf, before[path])

    offsets = np.asarray(result.potential.params["offsets"])
    assert offsets.shape == (2, 1)
    assert (np.abs(offsets) > 1e-4).all()
    np.testing.assert_allclose((deployed.references - start.references)[[1, 8]], offsets[:, 0], atol=1e-12)
    np.testing.assert_array_equal(np.delete(deployed.references, [1, 8]), np.delete(start.references, [1, 8]))
    assert_equal_energies(result.potential, deployed, high[:4])


def test_offsets_are_those_of_the_chosen_head(foundation, high):
    two = trainable_references(foundation.with_heads(2))
    offsets = np.array([[0.5, -1.0], [2.0, 3.0]], np.float32)
    two = two.replace(params=two.params | {"offsets": offsets})
    structures = [frame.atoms for frame in high[:2]]
    before = predict(foundation, structures)
    for head in (0, 1):
        for old, new in zip(before, predict(two.select_head(head), structures), strict=True):
            added = sum(offsets[{1: 0, 8: 1}[z], head] for z in old.atoms.numbers)
            np.testing.assert_allclose(new.energy - old.energy, added, atol=1e-6)
    with pytest.raises(ValueError, match="has 2 readouts"):
        predict(two, structures)


def test_rates_fall_with_depth():
    """Readouts, last layer, first layer, table of elements; the factors of a matrix have its rate."""
    deep = Equivariant(channels=4, l_max=1, correlation=2, layers=2, first_interaction="agnostic").build(
        (1, 8), average_neighbors=8.0
    )
    expected = {"readout_0": 1, "readout_1": 1, "interaction_1": 0.5, "product_1": 0.5}
    expected |= {"interaction_0": 0.25, "product_0": 0.25, "map_0": 0.25, "embedding": 0.125}
    _, rates = adapted(deep, "everything", rank=2, layer_decay=0.5, seed=0)
    assert {name: set(jax.tree.leaves(tree)) for name, tree in rates.items()} == {k: {v} for k, v in expected.items()}
    _, rates = adapted(deep, "readouts", rank=2, layer_decay=0.5, seed=0)
    assert {name: set(jax.tree.leaves(tree)) for name, tree in rates.items()} == {
        name: {float(name.startswith("readout"))} for name in expected
    }
    factored, rates = adapted(deep, "low_rank", rank=2, layer_decay=0.5, seed=0)
    assert rates["interaction_1/up_0"] == {"a": 0.5, "b": 0.5}
    assert rates["interaction_0/up_0"] == {"a": 0.25, "b": 0.25}
    assert jax.tree.structure(rates) == jax.tree.structure(factored.params)


def test_lower_layers_move_more_slowly(foundation, high):
    """One step of Adam has the size of the learning rate, times the rate of the layer."""
    settings = SETTINGS.model_copy(update={"epochs": 1, "ema_decay": 0.0, "learning_rate": 3e-4})
    steps = {}
    for decay in (1.0, 0.5):
        deployed = trained(SingleFidelity(layer_decay=decay), foundation, high, settings).potential
        steps[decay] = {path: leaf - leaves(foundation)[path] for path, leaf in leaves(deployed).items()}
    for path, step in steps[0.5].items():
        share = {"readout": 1.0, "embeddi": 0.25}.get(path[:7], 0.5)
        np.testing.assert_allclose(step, share * steps[1.0][path], atol=3e-7)
        assert np.abs(step).max() > 5e-5


def test_pulled_to_the_foundation(foundation, high):
    """L2-SP keeps parameters near to where they started."""
    distance = {}
    for strength in (0.0, 100.0):
        deployed = trained(SingleFidelity(l2_sp=strength), foundation, high).potential
        distance[strength] = sum(np.sum((leaf - leaves(foundation)[k]) ** 2) for k, leaf in leaves(deployed).items())
    assert 0 < distance[100.0] < 0.5 * distance[0.0]


def test_mistakes_are_named(foundation):
    with pytest.raises(ValueError, match="rank is 99, but no matrix of the potential has more rows and columns"):
        low_rank(foundation, 99, 0)
    with pytest.raises(ValueError, match="rank is 3, but moves is readouts: only low_rank updates have a rank"):
        SingleFidelity(moves="readouts", rank=3)
    with pytest.raises(ValueError, match="learning_rat: Extra inputs"):
        SingleFidelity(training={"learning_rat": 0.1})
