"""Files that are whole or not there; JSON without NaN."""

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest

from jaxmlip.files import to_json, write_json, write_text, written_whole


def test_what_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "kept.txt"
    write_text(path, "before")

    def fail_halfway() -> None:
        with written_whole(path) as draft:
            draft.write_text("half")
            assert path.read_text() == "before"
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway()
    assert path.read_text() == "before"
    with pytest.raises(FileNotFoundError), written_whole(path):
        pass  # nothing was written
    assert [each.name for each in tmp_path.iterdir()] == ["kept.txt"]


def _die_halfway(path):
    with written_whole(path) as draft:
        draft.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "kept.txt"
    write_text(path, "before")
    process = multiprocessing.get_context("spawn").Process(target=_die_halfway, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.read_text() == "before"
    write_text(path, "after")
    assert path.read_text() == "after"


def test_two_writers_at_once(tmp_path):
    """The last to finish wins, whole."""
    path = tmp_path / "kept.txt"
    with written_whole(path) as one, written_whole(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"


def test_json_that_every_reader_takes(tmp_path):
    """NaN and infinities are no JSON."""
    content = {"error": float("nan"), "history": [(1.5, np.float64("inf"))], "n": np.arange(2), "a": np.array([np.nan])}
    write_json(tmp_path / "x.json", content)
    expected = {"error": None, "history": [[1.5, None]], "n": [0, 1], "a": [None]}
    assert json.loads((tmp_path / "x.json").read_text()) == expected
    assert json.loads(to_json(content, indent=None)) == expected
