"""A potential as a client of i-PI, or of any program that speaks its protocol: it computes forces where it is asked."""

from ase import Atoms
from ase.calculators.socketio import SocketClient

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
        ConnectionError: if no server answers there.
        ValueError: if the potential does not know an element.
    """
    potential.check(atoms, stress=bool(atoms.pbc.all()))
    atoms = atoms.copy()
    atoms.calc = Calculator(potential)
    where = f"the Unix socket /tmp/ipi_{unix}" if unix else f"{host}:{port}"
    try:
        client = SocketClient(unixsocket=unix, host=host, port=port)
    except OSError as error:
        raise ConnectionError(
            f"No server answers at {where} ({error.strerror}): start i-PI first, with this address in its ffsocket."
        ) from None
    try:
        # Structures that are not periodic throughout have no stress, and get a virial of zero.
        return sum(1 for _ in client.irun(atoms, use_stress=bool(atoms.pbc.all())))
    finally:
        client.close()
