"""The torch-free reader on archives made here, byte for byte as torch.save lays them out."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxmlip.potentials.torch_checkpoint import read_checkpoint

HEADER = b"\x80\x02"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


def tensor(key: str, storage: str, length: int, offset: int, size: tuple, stride: tuple) -> bytes:
    """Pickle of a tensor, in the opcodes torch writes."""

    def plain(value: object) -> bytes:
        return pickle.dumps(value, protocol=2)[2:-1]

    pid = b"(" + plain("storage") + b"ctorch\n" + storage.encode() + b"\n" + plain(key) + plain("cpu") + plain(length)
    arguments = b"(" + pid + b"tQ" + plain(offset) + plain(size) + plain(stride) + plain(False) + b"NtR"
    return TENSOR + arguments


def archive(path: Path, pickled: bytes, storages: dict[str, bytes], byteorder: str | None = None) -> Path:
    """A checkpoint file."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", HEADER + pickled + b".")
        for key, content in storages.items():
            file.writestr(f"archive/data/{key}", content)
        if byteorder:
            file.writestr("archive/byteorder", byteorder)
    return path


def test_views_of_a_storage(tmp_path: Path) -> None:
    """Offset, size and strides: here a transposed 3 × 2 matrix that starts at the second element."""
    data = np.arange(8, dtype="<f4")
    path = archive(tmp_path / "a", tensor("0", "FloatStorage", 8, 1, (2, 3), (1, 2)), {"0": data.tobytes()})
    np.testing.assert_array_equal(read_checkpoint(path), data[1:7].reshape(3, 2).T)


def test_big_endian(tmp_path: Path) -> None:
    """Archives say which byte order they have."""
    data = np.array([1, -2, 3], dtype=">i8")
    path = archive(tmp_path / "a", tensor("0", "LongStorage", 3, 0, (3,), (1,)), {"0": data.tobytes()}, "big")
    np.testing.assert_array_equal(read_checkpoint(path), [1, -2, 3])


def test_runs_no_code(tmp_path: Path) -> None:
    """A pickle that calls a function is refused with the function's name, and the function is not called."""
    target = tmp_path / "created"
    path = archive(tmp_path / "a", f"cos\nmkdir\n(V{target}\ntR".encode(), {})
    with pytest.raises(ValueError, match=r"names os.mkdir, which is neither a tensor nor a dictionary"):
        read_checkpoint(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("length", "offset", "size", "stride", "message"),
    [
        (8, 0, (8,), (1,), "storage 0 has 4 elements instead of 8"),
        (4, 1, (4,), (1,), "a tensor reaches beyond its storage"),
        (4, 0, (2,), (-1,), "negative offset, size or stride"),
    ],
)
def test_damaged_tensors(length: int, offset: int, size: tuple, stride: tuple, message: str, tmp_path: Path) -> None:
    """Sizes are checked before memory is read."""
    data = np.zeros(4, "<f4").tobytes()
    path = archive(tmp_path / "a", tensor("0", "FloatStorage", length, offset, size, stride), {"0": data})
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path)


def test_foreign_files(tmp_path: Path) -> None:
    """Each is refused for what it is."""
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
        read_checkpoint(tmp_path / "nothing")
    text = tmp_path / "text"
    text.write_text("not a zip archive")
    with pytest.raises(ValueError, match="text is not a PyTorch checkpoint or is truncated"):
        read_checkpoint(text)
    np.savez(tmp_path / "arrays.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"arrays.npz is a zip archive but no PyTorch checkpoint"):
        read_checkpoint(tmp_path / "arrays.npz")
    half = archive(tmp_path / "half", tensor("0", "FloatStorage", 4, 0, (4,), (1,)), {})
    with pytest.raises(ValueError, match="half cannot be read as a checkpoint of tensors"):
        read_checkpoint(half)
