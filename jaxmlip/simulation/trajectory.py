"""What a simulation leaves behind, in memory and in a file."""

import dataclasses
import enum
import os
from collections.abc import Iterator
from pathlib import Path
from typing import overload

import h5py
import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float, Int

LAYOUT = "jaxmlip-run-1"


class Outcome(enum.Enum):
    """How a replica ended; the value is the message for the user."""

    COMPLETED = "ran to the end"
    NOT_FINITE = "its energy, forces or momenta ceased to be finite"
    EXPLODED = "an atom or the cell moved further in one step than any sound dynamics does"
    CELL_LOST = "its cell shrank to half of its width at the start, or grew to twice of it"
    TOO_HOT = "its temperature rose above ten times the target"
    BOND_BROKEN = "a covalent bond of hydrogen became twice as long as at the start"
    NOT_CONVERGED = "it was not yet relaxed after the last step"


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Trajectories of replicas; host numpy throughout.

    `len(run)` and iteration give frames as `ase.Atoms`, replica by replica, so that `[*run]` is a list of structures.

    Attributes:
        numbers: [atoms], atomic numbers.
        positions: [replicas, frames, atoms, 3], Å, unwrapped: differences in time are displacements.
        cells: [replicas, 3, 3], lattice vectors as rows, Å; zero rows where not periodic. [replicas, frames, 3, 3]
            where cells move; `frame_cells` is always of this shape.
        pbc: [3].
        potential_energy: [replicas, frames], total energies in eV, elemental references included.
        temperature: [replicas, frames], kinetic temperature in K: 2K/3Nk for Langevin dynamics (NVT, NPT), 2K/(3N − 3)k
            where the centre of mass is at rest. With BAOAB it is low by about (ωh)²/4 in a mode of frequency ω (3 % for
            an O–H stretch at h = 0.5 fs) although the configurations are right.
        time_fs: [frames], time since the start; the start structure itself is not a frame.
        timestep_fs: fs.
        outcomes: one per replica.
        lengths: [replicas], frames a replica completed before it failed; later ones are NaN.
        wall_s: wall time of the whole run, compilation included.
        ns_per_day: summed over replicas, compilation not included.
        conserved: [replicas, frames], eV, the quantity that an exact integrator would conserve; None for ensembles
            without one. See there.
        pressure_GPa: [replicas, frames], instantaneous pressure, kinetic part included; None at constant volume.
    """

    numbers: Int[np.ndarray, " atoms"]
    positions: Float[np.ndarray, "replicas frames atoms 3"]
    cells: Float[np.ndarray, "replicas *frames 3 3"]
    pbc: Bool[np.ndarray, " 3"]
    potential_energy: Float[np.ndarray, "replicas frames"]
    temperature: Float[np.ndarray, "replicas frames"]
    time_fs: Float[np.ndarray, " frames"]
    timestep_fs: float
    outcomes: tuple[Outcome, ...]
    lengths: Int[np.ndarray, " replicas"]
    wall_s: float
    ns_per_day: float
    conserved: Float[np.ndarray, "replicas frames"] | None = None
    pressure_GPa: Float[np.ndarray, "replicas frames"] | None = None

    @property
    def n_replicas(self) -> int:
        """Number of replicas, failed ones included."""
        return self.positions.shape[0]

    @property
    def n_frames(self) -> int:
        """Frames per replica."""
        return self.positions.shape[1]

    @property
    def frame_cells(self) -> Float[np.ndarray, "replicas frames 3 3"]:
        """The cell of every frame, Å, whether cells move or not."""
        cells = self.cells if self.cells.ndim == 4 else self.cells[:, None]
        return np.broadcast_to(cells, (self.n_replicas, self.n_frames, 3, 3))

    @property
    def volume(self) -> Float[np.ndarray, "replicas frames"]:
        """Volumes in Å³; 0 unless periodic in all three directions."""
        return np.abs(np.linalg.det(self.frame_cells))

    @property
    def completed(self) -> Bool[np.ndarray, " replicas"]:
        """Which replicas ran to the end."""
        return np.array([outcome is Outcome.COMPLETED for outcome in self.outcomes])

    def __len__(self) -> int:
        """Number of frames over all replicas."""
        return int(self.lengths.sum())

    @overload
    def __getitem__(self, index: int) -> Atoms: ...
    @overload
    def __getitem__(self, index: slice) -> list[Atoms]: ...
    def __getitem__(self, index: int | slice) -> Atoms | list[Atoms]:
        """A frame by its place in the iteration, or a list of them."""
        places = [(replica, frame) for replica, length in enumerate(self.lengths) for frame in range(length)]
        chosen = places[index]
        return [self._atoms(*place) for place in chosen] if isinstance(chosen, list) else self._atoms(*chosen)

    def __iter__(self) -> Iterator[Atoms]:
        """Frames, replica by replica."""
        return iter(self.frames())

    def frames(self, stride: int = 1) -> list[Atoms]:
        """Every `stride`-th frame of each replica, replica by replica; `info` says which, with its time and energy.

        Raises:
            ValueError: for a stride below 1.
        """
        if stride < 1:
            raise ValueError(f"A stride is 1 or more, not {stride}.")
        return [
            self._atoms(replica, frame)
            for replica, length in enumerate(self.lengths)
            for frame in range(stride - 1, int(length), stride)
        ]

    def _atoms(self, replica: int, frame: int) -> Atoms:
        info = {
            "replica": replica,
            "time_fs": float(self.time_fs[frame]),
            "potential_energy": float(self.potential_energy[replica, frame]),
        }
        return Atoms(
            self.numbers,
            self.positions[replica, frame].astype(np.float64),
            cell=self.frame_cells[replica, frame],
            pbc=self.pbc,
            info=info,
        )

    def save(self, path: str | Path) -> None:
        """Write an HDF5 file in the H5MD layout (de Buyl et al., Comput. Phys. Commun. 185, 1546 (2014)).

        One group per replica in `particles` and `observables`. The file appears under its name only when it is whole.
        """
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with h5py.File(partial, "w") as file:
                self._write(file)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _write(self, file: h5py.File) -> None:
        h5md = file.create_group("h5md")
        h5md.attrs["version"] = np.array([1, 1], np.int32)
        h5md.create_group("author").attrs["name"] = "unknown"
        creator = h5md.create_group("creator")
        creator.attrs["name"], creator.attrs["version"] = "jaxmlip", LAYOUT
        steps = np.rint(self.time_fs / self.timestep_fs).astype(np.int64)

        def element(parent: h5py.Group, name: str, values: np.ndarray, unit: str) -> None:
            group = parent.create_group(name)
            group.create_dataset("value", data=values).attrs["unit"] = unit
            group["step"] = steps
            group.create_dataset("time", data=self.time_fs).attrs["unit"] = "fs"

        for replica in range(self.n_replicas):
            particles = file.create_group(f"particles/replica{replica}")
            box = particles.create_group("box")
            box.attrs["dimension"] = 3
            box.attrs["boundary"] = np.array(["periodic" if p else "none" for p in self.pbc], dtype="S8")
            if self.cells.ndim == 4:
                element(box, "edges", self.cells[replica], "Angstrom")
            else:
                box.create_dataset("edges", data=self.cells[replica]).attrs["unit"] = "Angstrom"
            particles["species"] = self.numbers
            element(particles, "position", self.positions[replica], "Angstrom")
            observables = file.create_group(f"observables/replica{replica}")
            element(observables, "potential_energy", self.potential_energy[replica], "eV")
            element(observables, "temperature", self.temperature[replica], "K")
            if self.conserved is not None:
                element(observables, "conserved", self.conserved[replica], "eV")
            if self.pressure_GPa is not None:
                element(observables, "pressure", self.pressure_GPa[replica], "GPa")

        meta = file.create_group("parameters")
        for name in ("timestep_fs", "wall_s", "ns_per_day", "n_replicas"):
            meta[name] = getattr(self, name)
        meta["lengths"] = self.lengths
        meta["outcomes"] = np.array([outcome.name for outcome in self.outcomes], dtype="S16")


def load_run(path: str | Path) -> Run:
    """Read what `Run.save` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no trajectory {path}.")
    try:
        with h5py.File(path, "r") as file:
            return _read(file)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a trajectory saved by jaxmlip, or is damaged ({error}); run the simulation again."
        ) from error


def _read(file: h5py.File) -> Run:
    layout = str(file["h5md/creator"].attrs["version"])
    if layout != LAYOUT:
        raise ValueError(f"its layout is {layout}, not {LAYOUT}")
    replicas = range(int(_array(file, "parameters/n_replicas")))

    def stacked(template: str) -> np.ndarray:
        return np.stack([_array(file, template.format(replica)) for replica in replicas])

    def if_there(template: str) -> np.ndarray | None:
        return stacked(template) if template.format(0) in file else None

    moves = isinstance(file["particles/replica0/box/edges"], h5py.Group)
    boundary = np.asarray(file["particles/replica0/box"].attrs["boundary"])
    return Run(
        numbers=_array(file, "particles/replica0/species"),
        positions=stacked("particles/replica{}/position/value"),
        cells=stacked("particles/replica{}/box/edges" + ("/value" if moves else "")),
        pbc=np.array([bytes(b) == b"periodic" for b in boundary]),
        potential_energy=stacked("observables/replica{}/potential_energy/value"),
        temperature=stacked("observables/replica{}/temperature/value"),
        time_fs=_array(file, "particles/replica0/position/time"),
        timestep_fs=float(_array(file, "parameters/timestep_fs")),
        outcomes=tuple(Outcome[name.decode()] for name in _array(file, "parameters/outcomes")),
        lengths=_array(file, "parameters/lengths"),
        wall_s=float(_array(file, "parameters/wall_s")),
        ns_per_day=float(_array(file, "parameters/ns_per_day")),
        conserved=if_there("observables/replica{}/conserved/value"),
        pressure_GPa=if_there("observables/replica{}/pressure/value"),
    )


def _array(file: h5py.File, name: str) -> np.ndarray:
    """A dataset as an array; KeyError if something else has its name."""
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise KeyError(f"{name} is not a dataset")
    return np.asarray(dataset[()])
