"""Stages are kept by their inputs, whole or not at all."""

import json
import multiprocessing
import threading

import pytest

from jaxmlip.study.workspace import Workspace, seed_for


def write(text):
    return lambda folder: (folder / "result.txt").write_text(text) and None


@pytest.fixture
def quiet(tmp_path):
    return lambda: Workspace(tmp_path / "run", report=lambda line: None)


def test_a_stage_runs_once_for_the_same_inputs(quiet):
    made = []
    for _ in range(2):
        stage = quiet().stage("one", {"seed": 1}, lambda folder: made.append(folder))
    assert len(made) == 1
    quiet().stage("one", {"seed": 2}, lambda folder: made.append(folder))
    assert len(made) == 2
    assert json.loads((stage.folder / "stage.json").read_text())["inputs"] == {"seed": 2}


def test_a_changed_stage_changes_those_after_it(quiet):
    made = []

    def both(seed):
        workspace = quiet()
        first = workspace.stage("first", {"seed": seed}, write("x"))
        workspace.stage("second", {"first": first}, lambda folder: made.append(seed))

    for seed in (1, 1, 2):
        both(seed)
    assert made == [1, 2]


def test_a_failing_stage_leaves_nothing_behind(quiet, tmp_path):
    def fail(folder):
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quiet().stage("one", {}, fail)
    assert not (tmp_path / "run" / "stages" / "one").exists()
    stage = quiet().stage("one", {}, write("whole"))
    assert [path.name for path in sorted(stage.folder.iterdir())] == ["result.txt", "stage.json"]


def test_what_can_go_on_does(quiet, tmp_path):
    """What a killed build left in `training/` is there for the same inputs, and for no others."""
    found = []

    def build(folder):
        found.append(sorted(path.name for path in folder.iterdir() if path.name != "key"))
        (folder / "training").mkdir(exist_ok=True)
        (folder / "training" / "step").write_text("1")
        (folder / "half.txt").write_text("half")
        if len(found) < 4:
            raise KeyboardInterrupt

    for seed in (1, 1, 2):
        with pytest.raises(KeyboardInterrupt):
            quiet().stage("one", {"seed": seed}, build)
    stage = quiet().stage("one", {"seed": 2}, build)
    assert found == [[], ["training"], [], ["training"]]
    assert sorted(path.name for path in stage.folder.iterdir()) == ["half.txt", "stage.json", "training"]


def _hold(folder, ready, done):
    with Workspace(folder).locked():
        ready.set()
        done.wait(30)


def test_two_runs_do_not_share_a_folder(tmp_path, quiet):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "run", ready, done))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(RuntimeError, match="Another run is at work"), quiet().locked():
        pass
    done.set()
    holder.join()
    with quiet().locked():
        pass


def test_parts_of_a_folder_are_claimed_one_by_one(tmp_path):
    one, other = Workspace(tmp_path / "run"), Workspace(tmp_path / "run")
    with one.claimed("a", wait=False) as first, other.claimed("b", wait=False) as second:
        assert first
        assert second
        with other.claimed("a", wait=False) as third:
            assert not third
    with other.claimed("a", wait=True) as free:
        assert free


def test_parts_that_another_is_at_work_on_come_last(tmp_path, quiet):
    """And none is dealt before the other lets go of it."""
    held, may_go = threading.Event(), threading.Event()

    def hold():
        with Workspace(tmp_path / "run").claimed("b", wait=True):
            held.set()
            may_go.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(60)
    order = []
    for number in quiet().dealt(["a", "b", "c"]):
        order.append("abc"[number])
        if order == ["a", "c"]:
            may_go.set()
    other.join()
    assert order == ["a", "c", "b"]


def test_a_stage_is_built_by_one_at_a_time(quiet):
    """Who comes second waits, and finds it made."""
    begun, may_go, made = threading.Event(), threading.Event(), []

    def build(folder):
        made.append(folder)
        begun.set()
        assert may_go.wait(60)

    threads = [threading.Thread(target=lambda: quiet().stage("one", {}, build)) for _ in range(2)]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()
    may_go.set()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_seeds_differ_by_purpose_and_seed():
    seeds = {seed_for(seed, purpose) for seed in (0, 1) for purpose in ("ice", "training")}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)
