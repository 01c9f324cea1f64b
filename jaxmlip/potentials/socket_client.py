"""A potential as a client of i-PI, or of any program that speaks its protocol: it computes forces where it is asked."""

from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.socketio import IPIProtocol, SocketClient, SocketClosed

from jaxmlip.potentials.ase import Calculator
from jaxmlip.potentials.potential import Potential


def answer_socket(
    atoms: Atoms, potential: Potential, *, unix: str | None = None, host: str = "localhost", port: int = 31415
) -> int:
    """Give energies, forces and virials to a server until it ends, such as i-PI with a `ffsocket`.

    Args:
        atoms: elements and periodic directions, in the order of the server's atoms; positions and cells are its.
        potential: any Potential.
        unix: name of a Unix socket, `<address>` of a server in mode "unix" (the file is /tmp/ipi_<name>).
        host: of a server in mode "inet".
        port: the same.

    Returns:
        How many times it was asked.

    Raises:
        ConnectionError: if no server answers there, if it has another number of atoms, or says what the protocol does
            not have.
        ValueError: if the potential does not know an element.
    """
    potential.check(atoms, stress=bool(atoms.pbc.all()))
    atoms = atoms.copy()
    atoms.calc = Calculator(potential)
    where = f"the Unix socket /tmp/ipi_{unix}" if unix else f"{host}:{port}"
    try:
        client = SocketClient(unixsocket=unix, host=host, port=port)
    except (OSError, OverflowError) as error:  # of the port, the latter
        raise ConnectionError(
            f"No server answers at {where} ({getattr(error, 'strerror', error)}): start i-PI first, with this address "
            "in its ffsocket."
        ) from None
    client.protocol = _Protocol(client.protocol.socket, len(atoms), where)
    try:
        # Structures that are not periodic throughout have no stress, and get a virial of zero.
        return sum(1 for _ in client.irun(atoms, use_stress=bool(atoms.pbc.all())))
    except (AssertionError, KeyError, UnicodeDecodeError) as error:
        raise _misunderstood(where, error, "a word that has no place there") from error
    finally:
        client.close()


class _Protocol(IPIProtocol):
    """Words and numbers of a server, those amiss told in a sentence."""

    def __init__(self, socket: Any, atoms: int, where: str) -> None:
        super().__init__(socket)
        self._atoms, self._where = atoms, where

    def recv(self, shape: Any, dtype: Any) -> np.ndarray:
        """An array; its numbers must be finite."""
        try:
            return super().recv(shape, dtype)
        except SocketClosed:
            raise ConnectionError(f"The server at {self._where} has ended in the middle of a message.") from None
        except (AssertionError, MemoryError, OverflowError, ValueError) as error:
            raise _misunderstood(self._where, error, "numbers that are not finite") from error

    def recvposdata(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cell, its inverse and positions, in ASE's units, of as many atoms as there are."""
        cell, inverse = (self.recv((3, 3), np.float64).T.copy() for _ in range(2))
        number = int(self.recv(1, np.int32)[0])
        if number != self._atoms:
            raise ConnectionError(
                f"The server at {self._where} has {number} atoms, and the structure {self._atoms}: give the structure "
                "that it simulates."
            )
        positions = self.recv((number, 3), np.float64)
        return cell * units.Bohr, inverse / units.Bohr, positions * units.Bohr


def _misunderstood(where: str, error: BaseException, otherwise: str) -> ConnectionError:
    return ConnectionError(
        f"The server at {where} says what the protocol of i-PI does not have ({str(error) or otherwise}): see that "
        "i-PI listens there, and that its simulation is sound."
    )
