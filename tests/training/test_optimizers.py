"""Optimisers by name: those of optax work, go on where they were, and mistakes are sentences."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic
import pytest
from water_pairs import HIGH, LOW

from jaxmlip.systems.batches import make_samples
from jaxmlip.training.checkpoints import fingerprint
from jaxmlip.training.loss import Terms
from jaxmlip.training.optimizers import transformation
from jaxmlip.training.problem import TrainingProblem, TrainingSettings
from jaxmlip.training.trainer import train, train_many

SETTINGS = TrainingSettings(epochs=8, batch_size=4, learning_rate=0.01, ema_decay=0.9, checkpoint_minutes=0)


@pytest.fixture(scope="module")
def problem(high) -> TrainingProblem:
    start = LOW.replace(references=HIGH.references)
    training, held_out = (make_samples(part, 4.0, 0.0, HIGH.references) for part in (high[:8], high[24:28]))
    terms = Terms(True, True, False)
    return TrainingProblem(start, training, held_out, terms, terms)


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param("lion", marks=pytest.mark.slow),
        {"name": "muon", "ns_steps": 3},
        pytest.param({"name": "sgd", "momentum": 0.9}, marks=pytest.mark.slow),
    ],
)
def test_others_than_adamw_train_and_go_on(problem, tmp_path, optimizer):
    """Validation improves; stopped within a training, it ends with the same bits."""
    settings = SETTINGS.model_copy(update={"optimizer": TrainingSettings(optimizer=optimizer).optimizer})
    whole = train(problem, settings, progress=False)
    assert whole.best_epoch > 0
    assert whole.history[-1]["validation_loss"] < whole.history[0]["validation_loss"]
    adamw = train(problem, SETTINGS, progress=False)
    assert any((np.asarray(whole.potential.params[n]) != adamw.potential.params[n]).any() for n in LOW.params)

    def stop(record: dict) -> None:
        if record["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(problem, settings, folder=tmp_path, progress=False, on_epoch=stop)
    seen = []
    resumed = train(problem, settings, folder=tmp_path, progress=False, on_epoch=seen.append)
    assert seen[0]["epoch"] in (3, 4)
    jax.tree.map(np.testing.assert_array_equal, resumed.potential.params, whole.potential.params)
    with pytest.raises(ValueError, match="training with other data, settings or initial parameters"):
        train(problem, SETTINGS, folder=tmp_path, progress=False)


def test_the_default_is_what_it_was(problem):
    """Settings without a word are written as before there was a choice, so that checkpoints and studies go on."""
    assert "optimizer" not in SETTINGS.model_dump()
    assert "optimizer" not in json.loads(SETTINGS.model_dump_json())
    named = TrainingSettings.model_validate(SETTINGS.model_dump() | {"optimizer": "adamw"})
    assert named == SETTINGS
    assert fingerprint([problem], [named]) == fingerprint([problem], [SETTINGS])
    other = TrainingSettings.model_validate(SETTINGS.model_dump() | {"optimizer": {"name": "adamw", "b1": 0.8}})
    assert other.model_dump()["optimizer"] == {"name": "adamw", "b1": 0.8}
    assert TrainingSettings.model_validate(other.model_dump()) == other
    assert TrainingSettings.model_validate_json(other.model_dump_json()) == other
    assert fingerprint([problem], [other]) != fingerprint([problem], [SETTINGS])


def test_decay_is_decoupled_for_all():
    """θ − η (∇ + λ θ) for SGD, which has no decay of its own; AdamW's own is used where there is one."""
    params, slope = {"a": jnp.array([2.0, -1.0])}, {"a": jnp.array([0.5, 0.0])}
    chosen = transformation(("sgd", ()), 0.1, 0.01)
    updates: Any = chosen.update(slope, chosen.init(params), params)[0]
    np.testing.assert_allclose(updates["a"], -0.1 * (slope["a"] + 0.01 * params["a"]), rtol=1e-6)
    ours, theirs = transformation(("adamw", ()), 0.1, 0.01), optax.adamw(0.1, weight_decay=0.01)
    steps = [each.update(slope, each.init(params), params)[0] for each in (ours, theirs)]
    jax.tree.map(np.testing.assert_array_equal, *steps)


def clipped_steps(learning_rate: float) -> optax.GradientTransformation:
    """A function of one's own."""
    return optax.chain(optax.clip(1.0), optax.sgd(learning_rate))


def test_one_of_ones_own(problem):
    settings = TrainingSettings(**SETTINGS.model_dump() | {"optimizer": f"{__name__}:clipped_steps", "epochs": 1})
    assert train(problem, settings, progress=False).best_epoch >= 0
    two = [dataclasses.replace(problem)] * 2
    with pytest.raises(ValueError, match="their settings have optimizer name='adamw' and name="):
        train_many(two, [SETTINGS.model_copy(update={"epochs": 1}), settings], progress=False)


@pytest.mark.parametrize(
    ("optimizer", "sentence"),
    [
        ("lions", "There is no optimizer 'lions'; did you mean lion?"),
        ("zzz", "There is no optimizer 'zzz'; optax has .*adamw.*muon"),
        ({"name": "lion", "beta": 0.9}, "optimizer lion has no argument beta; did you mean|its arguments are b1, b2"),
        ({"name": "lion", "b1": "x"}, "optimizer lion does not work with gradients alone: unsupported operand"),
        ({"name": "sgd", "learning_rate": 1.0}, "learning_rate is a setting of the training, not of the optimizer sgd"),
        ("lbfgs", "lbfgs does not work with gradients alone: .*value_fn"),
        ("schedule_free_adamw", "are not those it moves, but an average in its state"),
        ("nowhere:made", "The optimizer nowhere:made cannot be imported"),
    ],
)
def test_mistakes_are_named(optimizer, sentence):
    with pytest.raises(pydantic.ValidationError, match=sentence):
        TrainingSettings(optimizer=optimizer)
