"""Terms that follow the parameters: when they are made anew, and how a training that was killed finds them again."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxmlip.potentials.potential import Potential
from jaxmlip.training.objective import Objective, Term
from jaxmlip.training.parallel import on_host, replicated
from jaxmlip.training.problem import TrainingProblem, TrainingSettings
from jaxmlip.training.runs import TrainingRun
from jaxmlip.training.stacking import stacked_controls, stacked_validation
from jaxmlip.training.step import Controls

SIMULATIONS = "simulations"
"""Where sources keep what they need, below the folder of a training."""


class Following:
    """The numbers of the steps and of the validation of a stack, as the terms of a source change them."""

    def __init__(
        self,
        problems: Sequence[TrainingProblem],
        settings: Sequence[TrainingSettings],
        folder: str | Path | None,
        mesh: Mesh | None,
        *,
        progress: bool,
    ) -> None:
        """Nothing is made yet.

        Raises:
            ValueError: if models of a stack, or several processes, would have to share what follows one model.
        """
        self._problems, self._settings, self._mesh = problems, settings, mesh
        self._progress = progress
        self._folder = None if folder is None else Path(folder) / SIMULATIONS
        self._source = problems[0].source
        self._terms: tuple[Term, ...] = ()
        followed = any(problem.source is not None for problem in problems)
        if followed and len(problems) > 1:
            raise ValueError(
                "Terms that follow the parameters are made for one model, and these are a stack: train them one by one "
                "(train_many with vectorised=False)."
            )
        if followed and jax.process_count() > 1:
            raise ValueError("Terms that follow the parameters are made by one process: train in a single one.")

    def resumed(self, run: TrainingRun) -> tuple[Controls, Objective]:
        """`numbers` as they were where a run goes on from a checkpoint, or at the start of a new one."""
        if self._source is not None and run.renewals:
            assert self._folder is not None
            self._terms = self._source.restored(self._potential(run), run.renewals, self._folder)
        return self.numbers()

    def renew(self, run: TrainingRun) -> bool:
        """Make terms anew if there are none yet, or they say too little of the parameters; return whether they were."""
        if self._source is None or run.models[0].diverged is not None:
            return False
        potential = self._potential(run)
        if self._terms and not self._source.outdated(self._terms, potential):
            return False
        number = run.renewals + 1
        self._terms = self._source.renewed(self._terms, potential, number, self._folder, progress=self._progress)
        run.renewals = number
        return True

    def numbers(self) -> tuple[Controls, Objective]:
        """Those of every step (see `stacked_controls`), and what is measured on validation samples."""
        stacked: Any = tuple(make(self.problems, self._settings) for make in (stacked_controls, stacked_validation))
        return replicated(stacked, self._mesh)

    @property
    def problems(self) -> list[TrainingProblem]:
        """The problems with the terms that there are by now."""
        return [dataclasses.replace(each, objective=(*each.objective, *self._terms)) for each in self._problems]

    def _potential(self, run: TrainingRun) -> Potential:
        params = jax.tree.map(lambda leaf: leaf[0], on_host(run.states.params))
        return self._problems[0].potential.with_params(params)
