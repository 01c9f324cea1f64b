"""Progress bars that suit a terminal and a log file alike."""

import sys
from typing import Any

from tqdm import tqdm

LOG_INTERVAL = 20.0
"""Seconds between updates where they are not overwritten."""


def progress_bar(*args: Any, **options: Any) -> tqdm:
    """A tqdm bar, with rare updates where standard error is no terminal; for the arguments see tqdm."""
    if not sys.stderr.isatty():
        options = {"mininterval": LOG_INTERVAL, "maxinterval": LOG_INTERVAL, "ascii": True} | options
    return tqdm(*args, **options)
