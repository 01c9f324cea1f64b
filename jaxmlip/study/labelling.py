"""Labels of a teacher as a stage, in pieces where several processes share the work."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms

from jaxmlip.describing import count
from jaxmlip.potentials.evaluation import label
from jaxmlip.potentials.potential import Potential
from jaxmlip.study.work import Work, labelling, making
from jaxmlip.study.workers import Workers
from jaxmlip.study.workspace import Piece, Workspace
from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.store import FrameStore, write_store

FRAMES = "frames.h5"
"""File of the labelled structures in the folder of a piece."""


class Labelling:
    """Labels of structures in groups, all at once or in pieces that are stages; both to the same rounding of a batch.

    Attributes:
        pieces: for `Workspace.stage`; none where one process labels all.
    """

    def __init__(
        self,
        workspace: Workspace,
        name: str,
        inputs: dict[str, Any],
        groups: Callable[[], list[list[Atoms]]],
        teacher: Potential,
        *,
        workers: Workers | None,
        number: int | None,
        atoms: float | None = None,
        stress: bool = False,
    ) -> None:
        """Cut the work to size.

        Args:
            workspace: where the stages are.
            name: of the stage.
            inputs: of the stage; they decide the structures and the teacher.
            groups: reads the structures, in groups that are written apart.
            teacher: that labels.
            workers: that share the work; None if there are none.
            number: of structures in all groups together, about; None if that is not known before.
            atoms: of all together, likewise.
            stress: whether stresses are labelled.
        """
        self._workspace, self._name, self._groups = workspace, name, groups
        self._teacher, self._stress = teacher, stress
        self._number, self._atoms = number, atoms
        parts = 1 if workers is None or not number else -(-number // workers.structures_at_once)
        self.pieces: list[Piece] = []
        if parts > 1:
            for place in range(parts):
                build = functools.partial(self._piece, place)
                self.pieces.append(Piece(f"{name}.{place}", inputs | {"piece": [place, parts]}, build, self._share))

    def work(self) -> Work:
        """Of the whole stage: next to nothing where it has pieces."""
        if self.pieces:
            return making(f"labels of {count(len(self.pieces), 'piece')} in one file")
        return labelling(self._number, self._atoms, self._teacher)

    def _share(self) -> Work:
        """Of a piece."""
        parts = len(self.pieces)
        number = None if self._number is None else -(-self._number // parts)
        return labelling(number, None if self._atoms is None else self._atoms / parts, self._teacher)

    def frames(self) -> list[list[Frame]]:
        """The labelled structures, group by group."""
        if not self.pieces:
            return [self._labelled(group) for group in self._groups()]
        lengths = [len(group) for group in self._groups()]
        found: list[Frame | None] = [None] * sum(lengths)
        for place, piece in enumerate(self.pieces):
            found[place :: len(self.pieces)] = [*FrameStore(self._folder(piece) / FRAMES)]
        ends = [sum(lengths[: place + 1]) for place in range(len(lengths))]
        return [found[end - length : end] for end, length in zip(ends, lengths, strict=True)]  # pyright: ignore

    def _folder(self, piece: Piece) -> Path:
        return self._workspace.folder / "stages" / piece.name

    def _labelled(self, structures: Sequence[Atoms]) -> list[Frame]:
        return label(structures, self._teacher, stress=self._stress)

    def _piece(self, place: int, folder: Path) -> None:
        structures = [atoms for group in self._groups() for atoms in group]
        write_store(folder / FRAMES, self._labelled(structures[place :: len(self.pieces)]))
