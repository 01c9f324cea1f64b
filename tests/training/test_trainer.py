"""The trainer on a potential of nine parameters, whose true values are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest
from ase import Atoms
from water_pairs import HIGH, LOW

from jaxmlip import memory
from jaxmlip.potentials.evaluation import label, predict
from jaxmlip.systems.batches import LazySamples, Recipe, make_batches, make_samples
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.loss import Terms, loss
from jaxmlip.training.problem import Trained, TrainingDiverged, TrainingProblem, TrainingSettings, check_frames
from jaxmlip.training.runs import GAIN
from jaxmlip.training.stacking import stacked_controls, stacked_potentials, stacked_states
from jaxmlip.training.step import TrainState, schedule, update
from jaxmlip.training.trainer import train

TERMS = Terms(True, True, False)
RATE = np.array([0.02])
SETTINGS = TrainingSettings(epochs=60, batch_size=4, learning_rate=0.02, ema_decay=0.9)


def problem(frames: list[Frame], validation: list[Frame] | None = None, **changes) -> TrainingProblem:
    """From LOW's parameters to HIGH's labels; the last 8 frames are for validation unless others are given."""
    start = LOW.replace(references=HIGH.references)
    training, held_out = (
        make_samples(part, 4.0, 0.0, HIGH.references) for part in (frames[:24], validation or frames[24:])
    )
    names = [f"{frame.info['file']}, frame {frame.info['frame']}" for frame in frames[:24]]
    return dataclasses.replace(TrainingProblem(start, training, held_out, TERMS, TERMS, names), **changes)


@pytest.fixture(scope="module")
def trained(high) -> Trained:
    return train(problem(high), SETTINGS, progress=False)


def force_rmse(potential, frames: list[Frame]) -> float:
    predicted = predict(potential, [frame.atoms for frame in frames])
    errors = [(p.forces - f.forces).ravel() for p, f in zip(predicted, frames, strict=True)]
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


def test_reprs_are_short(trained):
    assert repr(trained).startswith(f"<Trained: epoch {trained.best_epoch} (validation loss ")
    assert repr(trained.problem).startswith("<TrainingProblem: ")
    assert "validation sample" in repr(trained.problem)
    assert repr(trained.problem.potential) in repr(trained.problem)
    assert max(len(repr(trained)), len(repr(trained.problem))) < 300


def test_learns_what_the_labels_say(trained, high):
    """Held-out forces, and the parameters themselves."""
    start, end = force_rmse(trained.problem.potential, high[24:]), force_rmse(trained.potential, high[24:])
    assert end < 0.05 * start
    for name, leaf in HIGH.params.items():
        initial = np.abs(LOW.params[name] - leaf).max()
        assert np.abs(np.asarray(trained.potential.params[name]) - leaf).max() < 0.25 * initial


def test_a_batch_that_does_not_fit_into_the_device_is_refused(trained, high, monkeypatch):
    monkeypatch.setattr(memory, "memory_limit", lambda: 10_000)
    with pytest.raises(ValueError, match=r"4 structures in a batch \(batch_size\) need .*; give fewer, or share"):
        train(problem(high), SETTINGS, progress=False)


def test_history_tells_the_truth(trained, high):
    """The record of the kept epoch is what `predict` finds; every record is complete."""
    record = next(r for r in trained.history if r["epoch"] == trained.best_epoch)
    assert record["validation_loss"] == min(r["validation_loss"] for r in trained.history)
    np.testing.assert_allclose(
        record["validation_force_rmse_meV_A"], 1e3 * force_rmse(trained.potential, high[24:]), rtol=1e-3
    )
    predicted = predict(trained.potential, [f.atoms for f in high[24:]])
    errors = [(p.energy - f.energy) / len(f.atoms) for p, f in zip(predicted, high[24:], strict=True)]
    expected = 1e3 * np.sqrt(np.mean(np.square(errors)))
    np.testing.assert_allclose(record["validation_energy_rmse_meV_atom"], expected, rtol=2e-2, atol=1e-2)
    assert [r["epoch"] for r in trained.history] == list(range(61))
    assert np.isnan(trained.history[0]["train_loss"])
    assert trained.history[-1]["train_loss"] < 0.1 * trained.history[1]["train_loss"]
    assert np.isnan(trained.history[-1]["validation_stress_rmse_GPa"])


def test_only_parameters_move(trained):
    np.testing.assert_array_equal(trained.potential.references, HIGH.references)
    assert jax.tree.structure(trained.potential) == jax.tree.structure(trained.problem.potential)


def steps(
    given: TrainingProblem, settings: TrainingSettings, batches, rates, state: TrainState | None = None
) -> tuple[TrainState, list[float]]:
    """Steps of the optimiser on a stack of one: the state after the last, and the losses."""
    controls = stacked_controls([given], [settings])
    stacked = stacked_states([given]) if state is None else jax.tree.map(lambda leaf: leaf[None], state)
    losses = []
    for batch, rate in zip(batches, rates, strict=True):
        stacked, report = update(
            stacked_potentials([given]),
            stacked,
            jax.tree.map(lambda leaf: leaf[None], batch),
            controls.replace(learning_rate=np.array([rate])),
        )
        losses.append(float(report.loss[0]))
    return jax.tree.map(lambda leaf: leaf[0], stacked), losses


def one_step(high, settings: TrainingSettings = SETTINGS, **changes) -> dict:
    """How far one step of the optimiser moves the parameters."""
    given = problem(high, **changes)
    state, _ = steps(given, settings, make_batches(given.train, 4)[:1], RATE)
    return {name: np.asarray(leaf) - np.asarray(given.potential.params[name]) for name, leaf in state.params.items()}


def test_rates_hold_slow_and_move_parameters(high):
    """0 stays bit for bit, 0.1 goes a tenth of the way; what stays is not seen by clipping."""
    full = one_step(high)
    slow = one_step(high, rates={"depth": 1.0, "length": np.array([0.0, 0.1, 1.0], np.float32)})
    np.testing.assert_array_equal(slow["length"][0], 0.0)
    np.testing.assert_allclose(slow["length"][1:], full["length"][1:] * [0.1, 1.0], rtol=1e-4)
    np.testing.assert_allclose(slow["depth"], full["depth"], rtol=1e-4)
    # A gradient that is clipped to nothing leaves AdamW's ε in charge: the step says what the norm was.
    tight = SETTINGS.model_copy(update={"clip_norm": 1e-9})
    alone = one_step(high, tight, rates={"depth": 1.0, "length": 0.0})
    assert (np.abs(alone["depth"]) > 2 * np.abs(one_step(high, tight)["depth"])).any()


def test_l2_sp_pulls_to_the_start(high):
    """The penalty's gradient is what it should be, and the more of it, the nearer the end is to the start."""
    given = problem(high, l2_sp=3.0)
    batch = make_batches(given.train, 4)[0]
    state, _ = steps(given, SETTINGS, [], [])
    away = state.replace(params=jax.tree.map(lambda leaf: leaf + 0.01, state.params))

    @jax.jit
    def objective(params, l2_sp):
        value = loss(given.potential.replace(params=params), batch, SETTINGS.weights(), terms=TERMS)[0]
        far = sum(jnp.sum((params[name] - LOW.params[name]) ** 2) for name in params)
        return value + 0.5 * l2_sp * far

    for strength in (0.0, 3.0):
        after, value = steps(dataclasses.replace(given, l2_sp=strength), SETTINGS, [batch], RATE, away)
        np.testing.assert_allclose(value[0], objective(away.params, 0.0), rtol=1e-6)  # reported without the penalty
        gradient = jax.jit(jax.grad(objective))(away.params, strength)
        momentum = after.opt_state[1][0].mu  # (1 − β₁) × gradient after the first step
        jax.tree.map(lambda m, g: np.testing.assert_allclose(m, 0.1 * g, rtol=1e-3, atol=1e-6), momentum, gradient)

    def distance(strength):
        params = train(problem(high, l2_sp=strength), SETTINGS, progress=False).potential.params
        return sum(float(np.sum((np.asarray(params[name]) - LOW.params[name]) ** 2)) for name in params)

    assert distance(100.0) < 0.1 * distance(0.0)


def test_deterministic_by_seed_and_compiled_once(trained, high):
    """Same seed, same bits. Other seeds, rates and weights are other numbers, not other programs."""
    compiled = update._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    settings = SETTINGS.model_copy(update={"epochs": 3})
    first, again = (train(problem(high), settings, progress=False).potential.params for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    numbers = {"learning_rate": 0.003, "forces_weight": 3.0, "weight_decay": 0.1, "clip_norm": 0.5}
    for changes in ({"seed": 1}, numbers):
        other = train(problem(high), settings.model_copy(update=changes), progress=False).potential.params
        assert (np.asarray(other["depth"]) != np.asarray(first["depth"])).all()
    assert update._cache_size() == compiled  # pyright: ignore[reportAttributeAccessIssue]


def test_best_validation_parameters_are_kept(clusters, high):
    """Validated on labels half way between start and goal, the best epoch is passed and gone back to."""
    between = jax.tree.map(lambda a, b: 0.5 * (a + b), LOW.params, HIGH.params)
    validation = label(clusters[24:], HIGH.replace(params=between))
    result = train(problem(high, validation), SETTINGS, progress=False)
    losses = [record["validation_loss"] for record in result.history]
    assert 0 < result.best_epoch < 60
    assert losses[result.best_epoch] == min(losses) < 0.7 * losses[-1]
    distance = {
        name: [np.abs(np.asarray(result.potential.params[name]) - end[name]).max() for end in (between, HIGH.params)]
        for name in between
    }
    assert distance["length"][0] < distance["length"][1]


def test_initial_parameters_are_kept_if_nothing_is_better(clusters, high):
    validation = label(clusters[24:], HIGH.replace(params=LOW.params))
    settings = SETTINGS.model_copy(update={"epochs": 3})
    result = train(problem(high, validation), settings, progress=False)
    assert result.best_epoch == 0
    jax.tree.map(np.testing.assert_array_equal, result.potential.params, LOW.params)


def test_moving_average_forgets_its_start(high):
    """With decay 0 it is the parameters; else Σ by hand with the decay min(d, (1 + t)/(10 + t))."""
    start = problem(high)
    for decay in (0.0, 0.3):
        settings = SETTINGS.model_copy(update={"ema_decay": decay})
        batches, rates = make_batches(start.train, 4), schedule(settings, 6)[3]
        (state, _), average = steps(start, settings, [], []), LOW.params["length"]
        for step in range(5):
            state, _ = steps(start, settings, batches[step : step + 1], rates[step : step + 1], state)
            keep = min(decay, (1 + step) / (10 + step))
            average = keep * average + (1 - keep) * np.asarray(state.params["length"])
        np.testing.assert_allclose(state.ema["length"], average, rtol=1e-6)
        assert int(state.step) == 5


def test_schedule_warms_up_and_cools_down():
    settings = TrainingSettings(epochs=10, learning_rate=0.1, warmup=0.2, final_learning_rate=0.01)
    rates = schedule(settings, 5).ravel()
    assert len(rates) == 50
    np.testing.assert_allclose(np.diff(rates[:11]), np.diff(rates[:2])[0], rtol=1e-4)
    assert rates.argmax() == 10
    np.testing.assert_allclose(rates[10], 0.1, rtol=1e-6)
    assert (np.diff(rates[10:]) < 0).all()
    assert 0.001 < rates[-1] < 0.0015
    assert schedule(TrainingSettings(epochs=1), 1).shape == (1, 1)


def test_validation_happens_when_asked(high):
    seen = []
    settings = SETTINGS.model_copy(update={"epochs": 5, "validation_every": 2})
    result = train(problem(high), settings, progress=False, on_epoch=seen.append)
    assert [record["epoch"] for record in seen] == [0, 2, 4, 5]
    assert seen == result.history


def test_trained_until_its_loss_ceases_to_fall(high, tmp_path):
    """The rate is halved after `patience` validations without a lower loss, down to its end; killed, it is the same."""
    settings = SETTINGS.model_copy(
        update={"epochs": 200, "patience": 2, "final_learning_rate": 0.4, "warmup": 0.0, "checkpoint_minutes": 0.01}
    )
    whole = train(problem(high), settings, progress=False)
    assert whole.converged is True
    assert whole.history[-1]["epoch"] < 200
    lowest, waited, slowed, expected = np.inf, 0, 1.0, [0.0]
    for record in whole.history:
        waited = 0 if record["validation_loss"] < (1 - GAIN) * lowest else waited + 1
        lowest = min(lowest, record["validation_loss"])
        if waited == 2:
            waited, slowed = 0, slowed / 2
        expected.append(0.02 * slowed)
    np.testing.assert_allclose([record["learning_rate"] for record in whole.history], expected[:-1], rtol=1e-6)
    assert slowed < 0.4 <= 2 * slowed

    def stop(record: dict) -> None:
        if record["epoch"] == whole.history[-1]["epoch"] - 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(problem(high), settings, folder=tmp_path, progress=False, on_epoch=stop)
    resumed = train(problem(high), settings, folder=tmp_path, progress=False)
    jax.tree.map(np.testing.assert_array_equal, resumed.potential.params, whole.potential.params)
    assert (resumed.converged, resumed.best_epoch) == (True, whole.best_epoch)
    cut = train(problem(high), settings.model_copy(update={"epochs": 5}), progress=False)
    assert cut.converged is False
    assert train(problem(high), SETTINGS.model_copy(update={"epochs": 1}), progress=False).converged is None


def test_divergence_names_epoch_and_frames_and_keeps_the_last_good(high):
    """An infinite label: the sentence names the batch it is in, and the parameters held are finite."""
    frames = [*high]
    frames[7] = dataclasses.replace(high[7], energy=float("inf"))
    with pytest.raises(
        TrainingDiverged, match=r"not finite in epoch 1 .*high\.extxyz, frame 7.*epoch \d+ are kept"
    ) as e:
        train(problem(frames), SETTINGS, progress=False)
    kept = e.value.trained
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept.potential.params))
    assert [record["epoch"] for record in kept.history] == [0, 1]
    assert force_rmse(kept.potential, high[24:]) <= force_rmse(LOW, high[24:])


def test_samples_that_are_made_when_asked_for(high):
    """Lazy training and validation sets give the bits of lists."""
    given, settings = problem(high), SETTINGS.model_copy(update={"epochs": 2})
    recipe = Recipe(4.0, 0.0, HIGH.references)
    lazy = dataclasses.replace(given, train=LazySamples(high[:24], recipe), validation=LazySamples(high[24:], recipe))
    params = [train(one, settings, progress=False).potential.params for one in (given, lazy)]
    jax.tree.map(np.testing.assert_array_equal, *params)


def test_no_samples(high):
    with pytest.raises(ValueError, match="0 training samples and 8 validation samples; training needs at least one"):
        train(problem(high, train=[]), SETTINGS, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 0.1}, "learning_rat"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"energy_weight": 0, "forces_weight": 0}, "nothing to minimise"),
        ({"loss": "mae"}, "'huber' or 'mse'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        TrainingSettings(**settings)


def test_data_are_checked_by_name(high):
    """Each mistake in one sentence that names frames and label, for training and validation frames alike."""
    sulphur = Frame(Atoms("SO", [[0, 0, 0], [0, 0, 1.5]]), 0.0, np.zeros((2, 3)), info={"file": "x.db", "frame": 3})
    blind = [dataclasses.replace(f, forces=np.full_like(f.forces, np.nan)) for f in high[:3]]
    wrong = {
        "There are no training frames; training needs at least one": ([], high),
        "There are no validation frames": (high, []),
        r"x\.db, frame 3 \(training\) contains S, but the student only knows H O": ([*high, sulphur], high),
        r"x\.db, frame 3 \(validation\) contains S": (high, [sulphur]),
        r"needs forces, but no training frame has that label \(high\.extxyz, frame 0 to high\.extxyz, frame 2\); "
        r"give frames with forces, or set forces_weight to 0": (blind, high),
        r"needs forces, but no validation frame has that label \(high\.extxyz, frame 1\)": (high, blind[1:2]),
    }
    for message, (training, validation) in wrong.items():
        with pytest.raises(ValueError, match=message):
            check_frames((1, 8), training, validation, TERMS, TERMS)
    check_frames((1, 8), blind, high, Terms(True, False, False), TERMS)
