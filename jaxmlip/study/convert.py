"""Files of labelled frames as stores: the `jaxmlip convert-data` command."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from jaxmlip.progress import progress_bar
from jaxmlip.simulation.frames import open_frames
from jaxmlip.systems.dataset import Frame, iterate_frames
from jaxmlip.systems.label_keys import DEFAULT
from jaxmlip.systems.mptrj import ENERGY_KEY, FORCES_KEY, STRESS_KEY, is_mptrj, iterate_mptrj
from jaxmlip.systems.store import write_store


def convert_data(
    source: Path, out: Path, keys: Mapping[str, str | None], *, allow_close: bool = False, progress: bool = False
) -> tuple[int, list[str]]:
    """Write the frames of a file to a store, one after the other, so that neither need fit into memory.

    Args:
        source: what `open_frames` reads, or a file of the MPtrj layout.
        out: file to write; its name ends in `.h5`.
        keys: names of the labels that are not the usual ones, as {"energy": "off23_energy"}; None for none.
        allow_close: see `read_frames`.
        progress: show a progress bar.

    Returns:
        Number of frames, and a sentence for each entry of the MPtrj layout that was left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: see `read_frames` and `iterate_mptrj`; if names are given to labels of the MPtrj layout whose names
            are fixed. Then nothing is written.
    """
    if out.suffix != ".h5":
        raise ValueError(f"The name of a store ends in .h5, and {out} does not.")
    left_out: list[str] = []
    frames: Iterable[Frame]
    if ".json" in source.suffixes and is_mptrj(source):
        if keys.keys() - {"energy"}:
            raise ValueError(
                f"{source} is of the MPtrj layout, whose forces and stress have fixed names; give a name to the energy "
                "alone."
            )
        names = {"energy": ENERGY_KEY, "forces": FORCES_KEY, "stress": STRESS_KEY, **keys}
        frames = iterate_mptrj(source, energy_key=names["energy"], allow_close=allow_close, left_out=left_out)
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
