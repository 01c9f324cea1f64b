"""HDF5 files with the mark of a writer, looked at before single-writer mode opens them.

A writer leaves a mark in the superblock, also if it is killed, and HDF5 opens such a file in single-writer,
multiple-reader mode only. There it takes a wrong checksum for a write that is not yet complete, and tries again after
pauses that double a hundred times: it waits for ever where metadata are damaged. Without the mark the same damage is an
error at once. So, if the writer is no more, a superblock without it is laid over the file, and all metadata are read.
"""

import contextlib
import fcntl
import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

SIGNATURE = b"\x89HDF\r\n\x1a\n"

VERSION, FLAGS, END, LENGTH = 8, 11, 28, 48
"""Of superblocks that have flags (version 3, addresses of 8 bytes): where version, flags and the address of the end of
the file are, and their length, a checksum of 4 bytes at the end included (HDF5 File Format Specification 3.0, II.A)."""


def check_metadata(file: h5py.Group) -> None:
    """Read all metadata of a file, or of a group and what is below it, so that damaged ones are an error here.

    HDF5's own visit (`visititems`) asks for object statistics, of which it crashes where headers are damaged.

    Raises:
        OSError: if there are damaged ones; or KeyError, ValueError or RuntimeError, as HDF5 has it.
    """
    dict(file.attrs)
    for name in file:
        found = file[name]
        if isinstance(found, h5py.Group):
            check_metadata(found)
        elif isinstance(found, h5py.Dataset):
            dict(found.attrs)
            if found.chunks:
                found.id.get_num_chunks()


def check_marked(path: Path) -> None:
    """Raise what `check_metadata` does of a file with the mark of a writer that is no more.

    Of a writer at work HDF5 would see half of what it does, and crash.
    """
    with path.open("rb") as content, h5py.File(_Unmarked(content), "r") as file:
        check_metadata(file)


def lock_of(path: Path) -> Path:
    """The lock of those who write a file: HDF5's own is given up in single-writer mode."""
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def no_writer(path: Path) -> Iterator[bool]:
    """Whether no process is at work on a file; if so, none begins while the context lasts."""
    try:
        lock = lock_of(path).open("rb")
    except OSError as error:
        yield isinstance(error, FileNotFoundError)
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # held, or there are no locks on this file system
            yield False
        else:
            yield True


class _Unmarked(io.RawIOBase):
    """A file as it would be without the mark, as long as its superblock says that it is."""

    def __init__(self, content: io.BufferedReader) -> None:
        super().__init__()
        head = bytearray(content.read(LENGTH))
        if len(head) < LENGTH or head[: len(SIGNATURE)] != SIGNATURE or head[VERSION] != 3:
            raise OSError("its superblock is of no version that has marks")
        said, own = struct.unpack_from("<I", head, LENGTH - 4)[0], lookup3(bytes(head[:-4]))
        if said != own:
            raise OSError("the checksum of its superblock is wrong")
        head[FLAGS] = 0
        struct.pack_into("<I", head, LENGTH - 4, lookup3(bytes(head[:-4])))
        self._content, self._head, self._place = content, bytes(head), 0
        # A writer that was killed may not have written all of the room that it had taken.
        self._end = max(struct.unpack_from("<Q", head, END)[0], os.fstat(content.fileno()).st_size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._end}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._end - self._place))
        self._content.seek(self._place)
        found = self._content.read(wanted)
        view[:wanted] = found + bytes(wanted - len(found))
        head = self._head[self._place : self._place + wanted]
        view[: len(head)] = head
        self._place += wanted
        return wanted


def lookup3(content: bytes) -> int:
    """Checksum of HDF5's metadata: `hashlittle` of Bob Jenkins' lookup3.c (2006), with 0 to begin with."""

    def turned(value: int, by: int) -> int:
        return (value << by | value >> (32 - by)) & 0xFFFFFFFF

    a = b = c = 0xDEADBEEF + len(content) & 0xFFFFFFFF
    whole = max(0, (len(content) - 1) // 12)
    words = struct.unpack(f"<{3 * whole + 3}I", content.ljust(12 * whole + 12, b"\0"))
    for place in range(0, 3 * whole, 3):
        mixed = [(each + word) & 0xFFFFFFFF for each, word in zip((a, b, c), words[place : place + 3], strict=True)]
        for step, by in enumerate((4, 6, 8, 16, 19, 4)):
            x, y, z = step % 3, (step + 1) % 3, (step + 2) % 3
            mixed[x] = ((mixed[x] - mixed[z]) & 0xFFFFFFFF) ^ turned(mixed[z], by)
            mixed[z] = (mixed[z] + mixed[y]) & 0xFFFFFFFF
        a, b, c = mixed
    if content:
        a, b, c = ((each + word) & 0xFFFFFFFF for each, word in zip((a, b, c), words[-3:], strict=True))
        c = (c ^ b) - turned(b, 14) & 0xFFFFFFFF
        a = (a ^ c) - turned(c, 11) & 0xFFFFFFFF
        b = (b ^ a) - turned(a, 25) & 0xFFFFFFFF
        c = (c ^ b) - turned(b, 16) & 0xFFFFFFFF
        a = (a ^ c) - turned(c, 4) & 0xFFFFFFFF
        b = (b ^ a) - turned(a, 14) & 0xFFFFFFFF
        c = (c ^ b) - turned(b, 24) & 0xFFFFFFFF
    return c
