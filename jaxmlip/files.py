"""Files that are whole or not there, and JSON that every reader takes."""

import contextlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_DRAFTS = itertools.count()


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A place beside a file to write to. It takes the file's place at the end; if anything goes wrong, it is removed.

    Readers, and a process that is killed, find the file as it was before or as it is after.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{next(_DRAFTS)}.partial")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with written_whole(path) as draft:
        draft.write_bytes(content)


def write_text(path: str | Path, content: str) -> None:
    """Write a text in UTF-8 whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: str | Path, content: Any, *, default: Callable[[Any], Any] | None = None) -> None:
    """Write JSON whole or not at all, see `to_json`."""
    write_text(path, to_json(content, default=default) + "\n")


def to_json(content: Any, indent: int | None = 1, *, default: Callable[[Any], Any] | None = None) -> str:
    """JSON that every reader takes: numbers that are not finite become null.

    Args:
        content: plain data, arrays, pydantic models, paths.
        indent: of nested lines; None for a single line.
        default: what stands for other objects; by default their text.
    """
    return json.dumps(finite(content), indent=indent, default=default or plain, allow_nan=False)


def finite(value: Any) -> Any:
    """Plain data in which numbers that are not finite are None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def plain(value: Any) -> Any:
    """Plain data for what JSON has no form for: arrays, pydantic models, else the text of an object."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    return str(value)
