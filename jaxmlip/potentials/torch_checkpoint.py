"""Reads the tensors of a PyTorch checkpoint with numpy alone.

A checkpoint written by `torch.save` is a zip archive: `<name>/data.pkl` is a pickle whose tensors are references to
`<name>/data/<key>`, the raw bytes of their storages (https://docs.pytorch.org/docs/stable/notes/serialization.html).
The pickle is read by an unpickler that knows three harmless names and refuses every other, so that a foreign file can
run no code.
"""

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

STORAGE_DTYPES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
"""Element types of torch's legacy storage classes, which the pickles still name."""


def read_checkpoint(path: str | Path) -> Any:
    """The object saved in a checkpoint, its tensors as numpy arrays.

    Args:
        path: a file written by `torch.save` (torch ≥ 1.6) that holds containers, numbers, strings and dense tensors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not such an archive, is truncated, or names anything but tensors and dictionaries.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is not a PyTorch checkpoint or is truncated ({error}); download it or reinstall its package again."
        ) from error


def _read_archive(archive: zipfile.ZipFile, path: Path) -> Any:
    """What `read_checkpoint` does, on the opened file."""
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"{path} is a zip archive but no PyTorch checkpoint: it holds {len(pickles)} files data.pkl.")
    folder = pickles[0].removesuffix("data.pkl")
    names = set(archive.namelist())
    order = archive.read(f"{folder}byteorder").decode() if f"{folder}byteorder" in names else "little"
    try:
        return _Unpickler(archive, folder, order).load()
    except zipfile.BadZipFile:
        raise
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint of tensors: {error}.") from error


class _Unpickler(pickle.Unpickler):
    """Unpickler of containers and dense tensors, and of nothing else."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, order: str) -> None:
        """Prepare to read the pickle in a folder of the archive, whose storages are "little" or "big" endian."""
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
        self._archive, self._folder, self._order = archive, folder, {"little": "<", "big": ">"}[order]

    def find_class(self, module: str, name: str) -> Any:
        """The three kinds of names a checkpoint of tensors needs."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither a tensor nor a dictionary")

    def persistent_load(self, pid: Any) -> np.ndarray:
        """The elements of a storage, flat."""
        _, dtype, key, _, length = pid
        data = np.frombuffer(self._archive.read(f"{self._folder}data/{key}"), np.dtype(self._order + dtype))
        if len(data) < length:
            raise pickle.UnpicklingError(f"storage {key} has {len(data)} elements instead of {length}")
        return data


def _rebuild_tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    """A tensor as a view into its storage; the counterpart of `torch._utils._rebuild_tensor_v2`."""
    if min((offset, *size, *stride)) < 0:
        raise pickle.UnpicklingError("a tensor has a negative offset, size or stride")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(storage):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), strides, writeable=False)
