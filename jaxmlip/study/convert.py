"""Files of labelled frames as stores: the `jaxmlip convert-data` command."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxmlip.progress import progress_bar
from jaxmlip.simulation.frames import open_frames
from jaxmlip.systems import matpes, mptrj
from jaxmlip.systems.dataset import Frame, iterate_frames
from jaxmlip.systems.label_keys import DEFAULT
from jaxmlip.systems.store import write_store


class Layout(NamedTuple):
    """A layout of JSON in which data sets are published; its files are recognised by what is in them."""

    name: str
    recognises: Callable[[Path], bool]
    iterate: Callable[..., Iterator[Frame]]
    keys: dict[str, str]


LAYOUTS = (
    Layout(
        "MPtrj",
        mptrj.is_mptrj,
        mptrj.iterate_mptrj,
        {"energy": mptrj.ENERGY_KEY, "forces": mptrj.FORCES_KEY, "stress": mptrj.STRESS_KEY},
    ),
    Layout(
        "MatPES",
        matpes.is_matpes,
        matpes.iterate_matpes,
        {"energy": matpes.ENERGY_KEY, "forces": matpes.FORCES_KEY, "stress": matpes.STRESS_KEY},
    ),
)


def convert_data(
    source: Path, out: Path, keys: Mapping[str, str | None], *, allow_close: bool = False, progress: bool = False
) -> tuple[int, list[str]]:
    """Write the frames of a file to a store, one after the other, so that neither need fit into memory.

    Args:
        source: what `open_frames` reads, or a file of the MPtrj or MatPES layout.
        out: file to write; its name ends in `.h5`.
        keys: names of the labels that are not the usual ones, as {"energy": "off23_energy"}; None for none.
        allow_close: see `read_frames`.
        progress: show a progress bar.

    Returns:
        Number of frames, and a sentence for each entry of these layouts that was left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: see `read_frames`, `iterate_mptrj` and `iterate_matpes`; if names are given to labels of these
            layouts whose names are fixed. Then nothing is written.
    """
    if out.suffix != ".h5":
        raise ValueError(f"The name of a store ends in .h5, and {out} does not.")
    left_out: list[str] = []
    frames: Iterable[Frame]
    published = {".json", ".jsonl"} & {*source.suffixes}
    layout = next((layout for layout in LAYOUTS if published and layout.recognises(source)), None)
    if layout is not None:
        if keys.keys() - {"energy"}:
            raise ValueError(
                f"{source} is of the {layout.name} layout, whose forces and stress have fixed names; give a name to "
                "the energy alone."
            )
        names = {**layout.keys, **keys}
        frames = layout.iterate(source, energy_key=names["energy"], allow_close=allow_close, left_out=left_out)
    else:
        names = {**DEFAULT, **keys}
        read = open_frames if source.suffix == ".h5" else iterate_frames
        frames = read(
            source,
            energy_key=names["energy"],
            forces_key=names["forces"],
            stress_key=names["stress"],
            allow_close=allow_close,
        )
    shown = iter(progress_bar(frames, desc="converting", unit="frame", disable=not progress))
    number = write_store(out, shown, keys={label: name for label, name in names.items() if name is not None})
    return number, left_out
