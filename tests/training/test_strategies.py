"""Every strategy lifts a small student from one water to another; nothing of a hidden label gets through."""

import dataclasses
from collections import Counter
from typing import Any, get_args

import jax
import numpy as np
import pydantic
import pytest
from water_pairs import HIGH, LOW

from jaxmlip.potentials.adapters import low_rank, trainable_references
from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.potential import LABELS, Potential, without_stress
from jaxmlip.systems.dataset import Frame, describe
from jaxmlip.training.distill import distil, distillation_problem, scale_and_shift, split_validation
from jaxmlip.training.finetune import finetune
from jaxmlip.training.labels import Labels, lifted_references, without_forces
from jaxmlip.training.loss import Terms
from jaxmlip.training.problem import Trained, TrainingSettings
from jaxmlip.training.step import update
from jaxmlip.training.strategies.closed_form import ClosedForm
from jaxmlip.training.strategies.continued import SingleFidelity
from jaxmlip.training.strategies.fresh import Differential, Direct
from jaxmlip.training.strategies.multi_fidelity import MultiFidelity
from jaxmlip.training.strategies.registry import STRATEGIES, AnyStrategy
from jaxmlip.training.trainer import train

MODEL = Equivariant(channels=4, l_max=0, correlation=1, layers=1, cutoff=4.0, radial_mlp=(16,))
SETTINGS = TrainingSettings(epochs=25, batch_size=4, learning_rate=0.02, ema_decay=0.95)
SHORT = SETTINGS.model_copy(update={"epochs": 1})
ALONE = {name: cls for name, cls in STRATEGIES.items() if not any(f.is_required() for f in cls.model_fields.values())}
"""Those whose name is enough; observable_tuning needs targets, and has tests of its own (validation/test_tuning.py)."""

ALL = [cls() for cls in ALONE.values() if not issubclass(cls, ClosedForm)]
"""Those that are trained; what has a closed form has tests of its own (test_tangent.py, test_pair_difference.py)."""

VARIANTS = [
    Direct(references="residual"),
    Differential(baseline="teacher", references="shift"),
    SingleFidelity(references="keep"),
    SingleFidelity(references="refit"),
    SingleFidelity(references="shift", moves="readouts", l2_sp=1.0),
]
SLOW_VARIANTS = [
    SingleFidelity(references="trainable", moves="low_rank", rank=2),
    MultiFidelity(references="trainable", warm_start=False, anchor=0.5, layer_decay=0.5, moves="all_but_embedding"),
]
"""Every source of references, baseline, choice of what moves and kind of sample that a strategy can have."""

pytestmark = pytest.mark.filterwarnings("ignore:H and O occur in one ratio only")


def rmse(potential: Potential, frames: list[Frame]) -> tuple[float, float]:
    """Of energies (eV/atom) and force components (eV/Å)."""
    predicted = predict(potential, [frame.atoms for frame in frames])
    energy = [(p.energy - f.energy) / len(f.atoms) for p, f in zip(predicted, frames, strict=True)]
    forces = np.concatenate([(p.forces - f.forces).ravel() for p, f in zip(predicted, frames, strict=True)])
    return float(np.sqrt(np.mean(np.square(energy)))), float(np.sqrt(np.mean(forces**2)))


@pytest.fixture(scope="module")
def distillation(low) -> Trained:
    problem = distillation_problem(MODEL, low[:24], low[24:], LOW.references, settings=SETTINGS)
    return train(problem, SETTINGS, progress=False)


@pytest.fixture(scope="module")
def foundation(distillation) -> EquivariantPotential:
    return distillation.potential


@pytest.fixture(scope="module")
def lifted(foundation, low, high) -> dict[tuple[str, str], Trained]:
    """Every strategy, trained on 24 clusters with either set of labels."""
    result = {}
    for strategy in ALL:
        for labels in get_args(Labels):
            problem = strategy.problem(
                foundation, high[:24], validation=high[24:], low=low[:24], labels=labels, settings=SETTINGS
            )
            result[strategy.name, labels] = train(problem, SETTINGS, progress=False)
    return result


def test_distillation_reduces_held_out_errors(distillation, low):
    """Far below what the shift and scale alone can do; the teacher's own references are kept."""
    start, end = rmse(distillation.problem.potential, low[24:]), rmse(distillation.potential, low[24:])
    assert end[0] < 0.2 * start[0]
    assert end[1] < 0.35 * start[1]
    np.testing.assert_array_equal(distillation.potential.references, LOW.references)


@pytest.mark.parametrize("labels", ["energy_forces", "energy"])
@pytest.mark.parametrize("strategy", ALL, ids=lambda s: s.name)
def test_deployed_potential_beats_the_foundation(lifted, foundation, high, strategy, labels):
    """Energies always; forces too where they were shown."""
    deployed = strategy.deploy(lifted[strategy.name, labels])
    energy, forces = rmse(deployed, high[24:])
    at_start = rmse(foundation.replace(references=lifted_references(foundation, high[:24])), high[24:])
    assert energy < 1e-3 * rmse(foundation, high[24:])[0]
    if labels == "energy_forces":
        assert forces < 0.7 * at_start[1]
    if strategy.name != "direct":
        assert energy <= at_start[0] * 1.001


def test_potentials_say_what_they_were_trained_on(distillation, lifted):
    """All labels that were ever in a loss, whatever strategy deploys them, and adapters what they adapt."""
    foundation = distillation.potential
    assert distillation.problem.potential.trained_on == ()
    assert without_stress(distillation.problem.potential) is None
    assert foundation.trained_on == ("energy", "forces")
    assert "trained on energies and forces, but never on stress" in (without_stress(foundation) or "")
    for strategy in ALL:
        for labels in get_args(Labels):
            deployed = strategy.deploy(lifted[strategy.name, labels])
            fresh = strategy.name == "direct" and labels == "energy"
            assert deployed.trained_on == (("energy",) if fresh else ("energy", "forces")), strategy.name
    adapter = trainable_references(low_rank(foundation, 2, seed=0)).having_seen(("stress",))
    assert adapter.select_head(0).trained_on == LABELS[:3]
    assert without_stress(adapter.select_head(0)) is None
    assert (foundation + LOW).trained_on is None
    assert jax.tree.structure(adapter.select_head(0)) == jax.tree.structure(foundation)


def test_hidden_forces_never_speak(lifted):
    """Histories of energy-only training have no force error, and those with forces do."""
    for (_, labels), trained in lifted.items():
        known = [np.isfinite(record["validation_force_rmse_meV_A"]) for record in trained.history]
        assert all(known) if labels == "energy_forces" else not any(known)


@pytest.mark.parametrize(
    "strategy",
    [*ALL, *VARIANTS, *(pytest.param(strategy, marks=pytest.mark.slow) for strategy in SLOW_VARIANTS)],
    ids=lambda s: f"{s.name} {s.model_dump(exclude_defaults=True, exclude={'name'})}",
)
def test_energy_only_training_cannot_see_forces(foundation, low, high, strategy):
    """True, absent or absurd forces and stresses: the same problem and the same parameters, bit for bit."""

    def with_forces(frame: Frame, value: float) -> Frame:
        return dataclasses.replace(frame, forces=np.full_like(frame.forces, value), stress=np.full((3, 3), value))

    outcomes = []
    for frames in (high, [with_forces(f, np.nan) for f in high], [with_forces(f, 1e9) for f in high]):
        problem = strategy.problem(
            foundation, frames[:24], validation=frames[24:], low=low[:24], teacher=LOW, labels="energy", settings=SHORT
        )
        trained = train(problem, SHORT, progress=False)
        assert not problem.selection.forces
        history = [{k: v for k, v in record.items() if k != "wall_s"} for record in trained.history]
        labels = [(sample.energy, sample.forces, sample.weight) for sample in problem.train + problem.validation]
        kept = (trained.potential, strategy.deploy(trained), trained.best_epoch)
        outcomes.append((problem.potential, problem.rates, labels, kept, history))
    for other in outcomes[1:]:
        jax.tree.map(np.testing.assert_array_equal, outcomes[0], other)


def test_differential_deploys_the_sum(lifted, foundation, high):
    """Energies (in float64, references included) and forces of foundation + delta."""
    trained = lifted["differential", "energy_forces"]
    structures = [frame.atoms for frame in high[24:27]]
    whole = predict(Differential().deploy(trained), structures)
    parts = [predict(potential, structures) for potential in (foundation, trained.potential)]
    for total, low, delta in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(total.energy, low.energy + delta.energy, rtol=0, atol=2e-5)
        np.testing.assert_allclose(total.forces, low.forces + delta.forces, rtol=0, atol=2e-5)
    assert trained.problem.baseline is foundation


@pytest.mark.parametrize("cutoff", [3.0, 5.0])
def test_the_teacher_itself_may_be_the_baseline(high, low, cutoff):
    """Deployed as teacher + delta, each within its own cutoff; labels are what the teacher lacks."""
    student = MODEL.model_copy(update={"cutoff": cutoff}).build((1, 8), average_neighbors=8.0)
    strategy = Differential(baseline="teacher")
    with pytest.raises(ValueError, match="there is no teacher; give `teacher`, or choose baseline: student"):
        strategy.problem(student, high[:4], validation=high[24:26], settings=SHORT)
    problem = strategy.problem(student, high[:4], validation=high[24:26], teacher=LOW, settings=SHORT)
    for sample, frame, below in zip(problem.train, high[:4], low[:4], strict=True):
        np.testing.assert_allclose(sample.forces, frame.forces - below.forces, atol=1e-5)
    deployed = strategy.deploy(Trained(problem.potential, [], 0, problem))
    structures = [frame.atoms for frame in high[:2]]
    assert deployed.cutoff == max(cutoff, LOW.cutoff)
    parts = [predict(potential, structures) for potential in (LOW, problem.potential)]
    for total, teacher, delta in zip(predict(deployed, structures), *parts, strict=True):
        assert np.abs(delta.forces).max() > 1e-3
        np.testing.assert_allclose(total.energy, teacher.energy + delta.energy, rtol=0, atol=2e-5)
        np.testing.assert_allclose(total.forces, teacher.forces + delta.forces, rtol=0, atol=2e-5)


def test_anchor_holds_the_foundations_forces(foundation, high, low):
    """A sample more for each frame, for the high readout, with the foundation's forces and no energy."""
    strategy = MultiFidelity(anchor=0.25, replay=0.5, replay_weight=3.0)
    arguments: dict[str, Any] = {"validation": high[24:], "low": low[:24], "labels": "energy", "settings": SHORT}
    problem = strategy.problem(foundation, high[:8], **arguments)
    assert [(sample.head, sample.weight) for sample in problem.train] == [(1, 1.0)] * 8 + [(1, 0.25)] * 8 + [
        (0, 3.0)
    ] * 4
    assert (problem.terms, problem.selection) == (Terms(True, True, False), Terms(True, False, False))
    predicted = predict(foundation, [frame.atoms for frame in high[:8]])
    for shown, anchor, prediction in zip(problem.train[:8], problem.train[8:16], predicted, strict=True):
        assert np.isnan(shown.forces).all()
        assert np.isnan(anchor.energy)
        np.testing.assert_array_equal(anchor.forces, prediction.forces)
    assert problem.names[8:16] == [f"{name} (anchor)" for name in problem.names[:8]]
    arguments["settings"] = SHORT.model_copy(update={"forces_weight": 0.0})
    with pytest.raises(ValueError, match="anchor holds forces, but forces_weight is 0"):
        strategy.problem(foundation, high[:8], **arguments)


def test_readouts_start_warm_or_fresh(foundation, high, low):
    """A copy of the low readout, or random numbers in the last readout alone; a readout for each fidelity."""
    arguments: dict[str, Any] = {"validation": high[24:], "low": low[:24], "settings": SHORT}
    warm = MultiFidelity().problem(foundation, high[:8], between=[low[:6]], **arguments)
    fresh = MultiFidelity(warm_start=False).problem(foundation, high[:8], **arguments)
    assert isinstance(warm.potential, EquivariantPotential)
    assert isinstance(fresh.potential, EquivariantPotential)
    assert (warm.potential.heads, fresh.potential.heads) == (3, 2)
    assert [sample.head for sample in warm.train] == [2] * 8 + [0] * 4 + [1] * 4
    for head in range(3):
        jax.tree.map(np.testing.assert_array_equal, warm.potential.select_head(head).params, foundation.params)
    jax.tree.map(np.testing.assert_array_equal, fresh.potential.select_head(0).params, foundation.params)
    last = fresh.potential.select_head(1).params
    for name, tree in last.items():
        same = [
            (np.asarray(a) == np.asarray(b)).all()
            for a, b in zip(*map(jax.tree.leaves, (tree, foundation.params[name])), strict=True)
        ]
        assert any(same) != name.startswith("readout")


def test_a_strategy_may_change_the_settings(foundation, high):
    """For itself alone; the settings are checked when it is made."""
    slow = Direct(training={"learning_rate": 1e-4, "seed": 3})
    assert slow.adjusted(SHORT) == SHORT.model_copy(update={"learning_rate": 1e-4, "seed": 3})
    assert Direct().adjusted(SHORT) == SHORT
    first = slow.problem(foundation, high[:8], validation=high[24:], settings=SHORT).potential.params
    second = (
        Direct()
        .problem(foundation, high[:8], validation=high[24:], settings=SHORT.model_copy(update={"seed": 3}))
        .potential.params
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_direct_needs_no_foundation(high):
    """The same as from a foundation's architecture; references that come from one are refused."""
    problem = Direct().from_labels(MODEL, high[:24], validation=high[24:], labels="energy", settings=SHORT)
    assert problem.terms == Terms(True, False, False)
    assert all(np.isnan(sample.forces).all() for sample in problem.train)
    with pytest.raises(ValueError, match="references is residual, which starts from a foundation's; choose refit"):
        Direct(references="residual").from_labels(MODEL, high[:24], validation=high[24:])


def test_multi_fidelity_shares_a_trunk(lifted, foundation, low, high):
    """One trunk, two readouts: the first still speaks for the low level, the second for the high one."""
    potential = lifted["multi_fidelity", "energy_forces"].potential
    heads = [potential.select_head(head) for head in (0, 1)]
    for name in heads[0].params:
        same = [
            bool((np.asarray(a) == np.asarray(b)).all())
            for a, b in zip(*(jax.tree.leaves(h.params[name]) for h in heads), strict=True)
        ]
        assert all(same) != name.startswith("readout")
    first = heads[0].replace(references=foundation.references)
    gap = rmse(LOW, high[24:])[1]
    assert rmse(first, low[24:])[1] < 0.5 * gap
    assert rmse(first, low[24:])[1] < 0.7 * rmse(heads[1], low[24:])[1]
    assert rmse(heads[1], high[24:])[1] < 0.7 * rmse(first, high[24:])[1]


def test_strategies_share_compiled_steps(lifted, foundation, high):
    """Direct, differential and single-fidelity steps are one program for each set of labels."""
    compiled = update._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    for strategy in (Direct(), Differential(), SingleFidelity()):
        for labels in get_args(Labels):
            problem = strategy.problem(foundation, high[:24], validation=high[24:], labels=labels, settings=SHORT)
            train(problem, SHORT.model_copy(update={"seed": 5}), progress=False)
    assert update._cache_size() == compiled  # pyright: ignore[reportAttributeAccessIssue]


def test_replay_is_a_choice_of_low_frames(foundation, low, high):
    """Replayed frames keep low-fidelity references, head and forces, also where high-fidelity forces are hidden."""

    def problem(replay: float, labels: Labels = "energy", settings=SHORT):
        return MultiFidelity(replay=replay).problem(
            foundation, high[:8], validation=high[24:], low=low[:24], labels=labels, settings=settings
        )

    for replay, number in ((0.5, 4), (1.0, 8), (0.01, 1), (10.0, 24)):
        assert len(problem(replay).train) == 8 + number
    half = problem(0.5)
    assert [sample.head for sample in half.train] == [1] * 8 + [0] * 4
    assert all(np.isnan(sample.forces).all() for sample in half.train[:8])
    assert all(np.isfinite(sample.forces).all() for sample in half.train[8:])
    assert half.terms == Terms(True, True, False)
    assert half.selection == Terms(True, False, False)
    for name, sample in zip(half.names[8:], half.train[8:], strict=True):
        frame = next(f for f in low if name == f"low.extxyz, frame {f.info['frame']} (replayed)")
        relative = frame.energy - LOW.references[frame.atoms.numbers].sum()
        np.testing.assert_allclose(sample.energy, relative, atol=1e-9)
    assert problem(0.5).names == half.names
    assert problem(0.5, settings=SHORT.model_copy(update={"seed": 1})).names != half.names


def test_replay_gives_types_of_frame_their_shares(foundation, low, high):
    """Half of eight frames from three of one type, so that each occurs once or twice; the others once at most."""
    rare = [dataclasses.replace(frame, info=frame.info | {"kind": "bulk"}) for frame in low[:3]]

    def replayed(**shares: float) -> list[str]:
        strategy = MultiFidelity(replay=1.0, replay_shares=shares)
        problem = strategy.problem(
            foundation, high[:8], validation=high[24:], low=rare + low[3:24], settings=SHORT, labels="energy"
        )
        return list(problem.names[8:])

    names = replayed(bulk=0.5)
    assert len(names) == 8
    rarely = Counter(name for name in names if name in {f"{describe(frame, 0)} (replayed)" for frame in rare})
    assert sorted(rarely.values()) == [1, 1, 2]
    assert len(set(names)) == 7
    with pytest.raises(ValueError, match="frames of type crystal, but those to be replayed are of types bulk, low"):
        replayed(crystal=0.5)
    with pytest.raises(ValueError, match="add up to more than 1"):
        MultiFidelity(replay_shares={"bulk": 0.7, "low": 0.4})


def test_lifted_references_change_least(foundation, high):
    """Water tells nothing of H against O: the change is along (2 H, 1 O), and no energy is left over on average."""
    references = lifted_references(foundation, high)
    change = references - foundation.references
    np.testing.assert_allclose(change[1], 2 * change[8], rtol=1e-9)
    assert (np.delete(change, [1, 8]) == 0).all()
    predicted = predict(foundation.replace(references=references), [frame.atoms for frame in high])
    left = [(p.energy - f.energy) / len(f.atoms) for p, f in zip(predicted, high, strict=True)]
    assert abs(np.mean(left)) < 1e-5
    np.testing.assert_allclose(2 * change[1] + change[8], -2044 - 27.2 + 16, atol=1.0)


def test_scale_and_shift_use_allowed_labels_only(foundation, high):
    shown = Direct().problem(foundation, high[:24], validation=high[24:], settings=SHORT)
    assert isinstance(shown.potential, EquivariantPotential)
    forces = np.concatenate([frame.forces.ravel() for frame in high[:24]])
    np.testing.assert_allclose(shown.potential.scale, np.sqrt(np.mean(forces**2)))
    hidden = Direct().problem(foundation, high[:24], validation=high[24:], labels="energy", settings=SHORT)
    assert isinstance(hidden.potential, EquivariantPotential)
    energies = [sample.energy / sample.graph.n_atoms for sample in hidden.train]
    np.testing.assert_allclose(hidden.potential.scale, np.std(energies))
    np.testing.assert_allclose(hidden.potential.shift, np.mean(energies))
    assert scale_and_shift(hidden.train[:1], Terms(True, False, False)) == (1.0, energies[0])


@pytest.mark.slow
def test_sentences_of_the_library(clusters, high, low):
    """As a user writes them."""
    student = distil(MODEL, LOW, clusters, settings=SHORT, validation_fraction=0.25, progress=False)
    np.testing.assert_array_equal(student.references, LOW.references)
    lifted = finetune(
        student,
        high,
        strategy=MultiFidelity(replay=1.0),
        low=low,
        settings=SHORT,
        validation_fraction=0.25,
        progress=False,
    )
    assert rmse(lifted, high)[0] < 0.01 * rmse(student, high)[0]


def test_mistakes_are_named(foundation, high, low):
    arguments = {"validation": high[24:], "settings": SHORT}
    with pytest.raises(
        ValueError,
        match=r"multi_fidelity replays low-fidelity labels, but there are no low-fidelity .*`replay` in a conf",
    ):
        MultiFidelity().problem(foundation, high[:8], **arguments)
    with pytest.raises(ValueError, match=r"references is shift, .*`replay` in a configuration"):
        SingleFidelity(references="shift").problem(foundation, high[:8], **arguments)
    with pytest.raises(ValueError, match="not below the size of any readout, so that all fidelities would share"):
        MultiFidelity(moves="low_rank", rank=2).problem(foundation, high[:8], low=low[:8], **arguments)
    with pytest.raises(ValueError, match="There are no training frames"):
        Direct().problem(foundation, [], **arguments)
    with pytest.raises(ValueError, match="There are no validation frames"):
        Direct().problem(foundation, high[:8], validation=[], settings=SHORT)
    with pytest.raises(
        ValueError, match=r"needs forces, but no training frame has that label \(high\.extxyz, frame 0 to"
    ):
        SingleFidelity().problem(foundation, without_forces(high[:8]), **arguments)
    no_energy = [dataclasses.replace(frame, energy=float("nan")) for frame in high[:8]]
    with pytest.raises(ValueError, match="needs energy, but no training frame"):
        Differential().problem(foundation, no_energy, labels="energy", **arguments)
    with pytest.raises(ValueError, match="direct lifts a potential that can be trained, and a WaterPairs is none"):
        Direct().problem(HIGH, high[:8], **arguments)
    blind = TrainingSettings(epochs=1, energy_weight=0.0)
    with pytest.raises(ValueError, match="labels is energy, but energy_weight is 0"):
        Direct().problem(foundation, high[:8], validation=high[24:], labels="energy", settings=blind)
    with pytest.raises(ValueError, match="at least 2 frames, one of them for validation; there are 1"):
        split_validation(high[:1], 0.1, 0)
    with pytest.raises(ValueError, match=r"between 0 and 1, not 1\.5"):
        finetune(foundation, high, strategy=Direct(), validation_fraction=1.5)


def test_strategies_are_configuration():
    """One mapping each; a wrong name or key is refused."""
    adapter = pydantic.TypeAdapter(AnyStrategy)
    assert adapter.validate_python({"name": "multi_fidelity", "replay": 0.25}) == MultiFidelity(replay=0.25)
    for name, cls in ALONE.items():
        assert adapter.validate_python({"name": name}) == adapter.validate_python(name) == cls()
        assert adapter.validate_json(cls().model_dump_json()) == cls()
    for wrong in (
        "transfer",
        {"name": "transfer"},
        {"name": "direct", "replay": 1.0},
        {"name": "direct", "moves": "readouts"},
    ):
        with pytest.raises(pydantic.ValidationError):
            adapter.validate_python(wrong)


@pytest.mark.slow
def test_distils_a_pretrained_teacher(clusters):
    """CHGNet into a small student: held-out force errors fall below a third of the RMS force."""
    chgnet = pytest.importorskip("jaxmlip.potentials.chgnet_checkpoint")
    teacher = chgnet.load_chgnet("gga")
    frames = predict(teacher, clusters)
    settings = SETTINGS.model_copy(update={"epochs": 60})
    problem = distillation_problem(MODEL, frames[:24], frames[24:], teacher.references, settings=settings)
    trained = train(problem, settings, progress=False)
    forces = np.concatenate([frame.forces.ravel() for frame in frames[24:]])
    assert rmse(trained.potential, frames[24:])[1] < np.sqrt(np.mean(forces**2)) / 3
