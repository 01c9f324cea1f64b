"""Bars that say what happens, in terminals and in log files."""

import contextlib
import io
import os

import pytest

from jaxmlip.progress import USUAL_COLUMNS, progress_bar


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_says_compiling_until_the_first_step(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    text = stream()
    monkeypatch.setattr("sys.stderr", text)
    with progress_bar(total=3, desc="training", compiles=True, file=text) as bar:
        assert text.getvalue().strip().startswith("compiling:   0%")
        for _ in range(3):
            bar.update()
    drawn = text.getvalue().replace("\r", "\n").split("\n")
    assert "training: 100%" in drawn[-2]
    assert sum("compiling" in line for line in drawn) == 1, "no flicker"


def test_a_terminal_that_says_no_size_shows_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of containers do; tqdm draws nothing where a terminal has no columns or rows."""
    pty = pytest.importorskip("pty", reason="there are no terminals of this kind here")
    reads, writes = pty.openpty()
    with open(writes, "w") as terminal:
        assert os.get_terminal_size(writes).columns == 0
        monkeypatch.setattr("sys.stderr", terminal)
        with progress_bar(total=3, desc="training", file=terminal) as bar:
            bar.update(3)
    pieces = []
    with contextlib.suppress(OSError):  # how Linux says that all of a closed terminal was read
        while piece := os.read(reads, 4096):
            pieces.append(piece)
    os.close(reads)
    drawn = b"".join(pieces).decode()
    assert "training: 100%" in drawn
    assert max(map(len, drawn.replace("\r", "\n").split("\n"))) <= USUAL_COLUMNS


def test_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr("sys.stderr", text)
    with progress_bar(total=4, compiles=True, file=text, mininterval=0.0) as bar:
        bar.resume(3)
        bar.compiled()
        assert "75%" in text.getvalue()
        assert "3/4" in text.getvalue()
        bar.update()
    assert "4/4" in text.getvalue()
    with progress_bar(total=4, compiles=True, disable=True, file=text) as bar:
        bar.resume(3)
        bar.compiled()
        bar.update()
