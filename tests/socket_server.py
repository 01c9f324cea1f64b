"""A server that says to one client what it is given, whatever that answers; and what i-PI's would say."""

import contextlib
import socket
import threading

import numpy as np
from ase import Atoms, units


def served(said: bytes) -> int:
    """The port on this machine where it is said."""
    listening = socket.create_server(("localhost", 0))
    listening.settimeout(20.0)  # nobody may ever come

    def speak() -> None:
        with contextlib.suppress(OSError), listening:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):  # or the client would be cut off while it answers
                    pass

    threading.Thread(target=speak, daemon=True).start()
    return listening.getsockname()[1]


def asking(atoms: Atoms) -> bytes:
    """What a server says that asks once."""
    inverse = np.linalg.inv(atoms.cell.array)
    numbers = [atoms.cell.array.T / units.Bohr, inverse * units.Bohr]
    said = [b"STATUS", b"POSDATA", *(each.tobytes() for each in numbers)]
    said += [np.int32(len(atoms)).tobytes(), (atoms.positions / units.Bohr).tobytes(), b"GETFORCE", b"EXIT"]
    return b"".join(each.ljust(12) if each.isalpha() else each for each in said)
