"""Progress bars that suit a terminal and a log file alike."""

import os
import sys
from typing import Any

from tqdm import tqdm

LOG_INTERVAL = 20.0
"""Seconds between updates where they are not overwritten."""

USUAL_COLUMNS, USUAL_ROWS = 80, 24
"""Of a terminal that does not say how large it is, as those of containers and of `ssh -tt` may not."""

COMPILING = "compiling"
"""What a bar says until the first step is done: compiling the program for it can take minutes."""


class Bar(tqdm):
    """A tqdm bar that says "compiling" before its first update, and its own description from then on."""

    def __init__(self, *args: Any, compiles: bool = False, **options: Any) -> None:
        self._afterwards = options.get("desc")
        self._compiles = compiles
        super().__init__(*args, **options | ({"desc": COMPILING} if compiles else {}))

    def update(self, n: Any = 1) -> bool | None:
        """Count steps."""
        self.compiled(refresh=False)
        return super().update(n)

    def compiled(self, *, refresh: bool = True) -> None:
        """Say that compiling is over, at once or when the bar is drawn next; its time does not count for the rate."""
        if self._compiles:
            self._compiles = False
            self.unpause()
            self.set_description(self._afterwards, refresh=refresh)

    def resume(self, done: int) -> None:
        """Begin at what was done before, as if `initial` had been it."""
        self.initial = self.n = self.last_print_n = done


def progress_bar(*args: Any, compiles: bool = False, **options: Any) -> Bar:
    """A bar, with rare updates where standard error is no terminal.

    Args:
        args: as tqdm takes them.
        compiles: whether the first step has to be compiled for: the bar says so until then.
        options: as tqdm takes them.
    """
    if not sys.stderr.isatty():
        options = {"mininterval": LOG_INTERVAL, "maxinterval": LOG_INTERVAL, "ascii": True} | options
    elif _says_no_size():  # where tqdm draws nothing at all
        options = {"ncols": USUAL_COLUMNS, "nrows": USUAL_ROWS} | options
    return Bar(*args, compiles=compiles, **options)


def say(sentence: str, *, shown: bool = True) -> None:
    """What the bars below are of: a line on standard error, between bars.

    Args:
        sentence: to be said.
        shown: whether progress is shown at all.
    """
    if shown:
        Bar.write(sentence, file=sys.stderr)


def _says_no_size() -> bool:
    """Whether standard error is a terminal of no columns and rows."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns == 0
    except (OSError, AttributeError):  # a notebook's, or none of the system's
        return False
