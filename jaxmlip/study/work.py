"""What stages of a study have to do, in numbers, and about how long that takes: what is said before anything runs."""

import dataclasses
from typing import Any, Literal, NamedTuple

from jaxmlip.describing import count
from jaxmlip.potentials.chgnet import CHGNet, CHGNetModel
from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.potential import Sum

Kind = Literal["structures", "labels", "training", "simulation", "errors", "report"]

MEASURED = "two cores of an AMD EPYC (CHGNet: one), see experiments/benchmarks/results/dry_run_rates.md"
"""Where the throughputs below were measured."""

FORCES_US = {0: 190.0, 1: 589.0}
"""Energy and forces of an equivariant potential by `message_l`: µs per atom, 128 channels, cutoff 5 Å, two layers."""

STEP_US = {64: 407.0, 128: 582.0}
"""A training step by channels: µs per atom of the batch, `message_l` 0, cutoff 5 Å, two layers."""

CHGNET_FORCES_US = 3000.0
"""The same of CHGNet on one core: 1900 in ice, 4400 in small crystals. No training step of it has been measured."""

COMPILING_S = {"training": 30.0, "simulation": 8.0, "labels": 5.0, "errors": 5.0}
"""Seconds until the first step or call is done, once for each model in a process."""

PROCESS_GIB = {"training": 2.0, "simulation": 0.6, "labels": 0.6, "errors": 0.6}
"""Resident memory of a process that has compiled for a few hundred atoms (peak MiB of the same tables)."""

ATOM_KIB = {"training": 220.0, "simulation": 33.0, "labels": 33.0, "errors": 33.0}
"""Temporary memory for each atom that is in memory with others, 128 channels (XLA temp of the same tables)."""

AT_ONCE = 512.0
"""Atoms that are labelled together, see `jaxmlip.potentials.evaluation.BATCH_ATOMS`."""


class Cost(NamedTuple):
    """What a model costs.

    Attributes:
        model: what it is, in words.
        forces_us: energy and forces, µs per atom; None if that was never measured.
        step_us: a training step, µs per atom of the batch; None likewise.
    """

    model: str
    forces_us: float | None
    step_us: float | None


@dataclasses.dataclass(frozen=True)
class Work:
    """What a stage has to do.

    Attributes:
        kind: of work.
        sizes: in words.
        atoms: atoms that are gone through, each as often as it is; None where that is not known before.
        at_once: atoms that are in memory together.
        cost: of the model that is evaluated or trained; None if there is none.
    """

    kind: Kind
    sizes: str
    atoms: float | None = 0.0
    at_once: float = 0.0
    cost: Cost | None = None

    @property
    def rate(self) -> tuple[str, str]:
        """What has the same time per atom."""
        return ("training" if self.kind == "training" else "forces", self.cost.model if self.cost else "")

    def seconds_per_atom(self) -> float | None:
        """By the measured throughputs; None where there is none."""
        if self.cost is None:
            return 0.0
        found = self.cost.step_us if self.kind == "training" else self.cost.forces_us
        return None if found is None else 1e-6 * found

    @property
    def memory_gib(self) -> float:
        """About what the process needs, GiB."""
        return PROCESS_GIB.get(self.kind, 0.5) + ATOM_KIB.get(self.kind, 0.0) * self.at_once / 2**20


def cost_of(model: Any) -> Cost:
    """What an architecture or a potential costs, as far as it was measured.

    Between and beyond the measured channels the cost is linear; it grows with the neighbours, hence with the third
    power of the cutoff, and with the layers.
    """
    if isinstance(model, Sum):
        terms = [cost_of(term) for term in model.terms]
        totals = [None if None in each else sum(each) for each in zip(*(cost[1:] for cost in terms), strict=True)]
        return Cost(" + ".join(cost.model for cost in terms), *totals)
    if isinstance(model, EquivariantPotential):
        model = model.specification
    if isinstance(model, Equivariant):
        slope = (STEP_US[128] - STEP_US[64]) / 64
        channels = (STEP_US[128] + slope * (model.channels - 128)) / STEP_US[128]
        shape = channels * (model.cutoff / 5.0) ** 3 * model.layers / 2
        messages = FORCES_US[min(model.message_l, 1)] / FORCES_US[0]
        said = f"{model.channels} channels, message_l {model.message_l}, {count(model.layers, 'layer')}"
        said += f", cutoff {model.cutoff:g} Å"
        return Cost(said, shape * messages * FORCES_US[0], shape * messages * STEP_US[128])
    if isinstance(model, CHGNet | CHGNetModel):
        return Cost("CHGNet", CHGNET_FORCES_US, None)
    return Cost(type(model).__name__, None, None)


def making(sizes: str) -> Work:
    """Structures that are made or chosen."""
    return Work("structures", sizes)


def labelling(
    structures: int | None, atoms: float | None, potential: Any, kind: Literal["labels", "errors"] = "labels"
) -> Work:
    """Labels of structures, or errors of a potential on them.

    Args:
        structures: how many; None if that is not known before.
        atoms: of all together.
        potential: that labels.
        kind: of work.
    """
    several = "structures, whose number is not known before" if structures is None else count(structures, "structure")
    sizes = several + ("" if atoms is None else f", {count(round(atoms), 'atom')}")
    return Work(kind, sizes, atoms, min(atoms or AT_ONCE, AT_ONCE), cost_of(potential))


def errors_of_model(structures: int | None, atoms: float | None, model: Any) -> Work:
    """Errors of a potential that is still to be made, by its architecture or what it starts from."""
    return labelling(structures, atoms, model, "errors")


def training(structures: int, atoms: float, steps: int, batch_size: int, model: Any) -> Work:
    """A training; what it validates is not counted.

    Args:
        structures: how many it trains on.
        atoms: of all together.
        steps: of the optimiser.
        batch_size: structures in a batch.
        model: architecture, or potential that is trained.
    """
    batch = min(batch_size, structures) * atoms / max(structures, 1)
    cost = cost_of(model)
    sizes = f"{count(structures, 'structure')}, {count(round(atoms), 'atom')}; {count(steps, 'step')}"
    return Work("training", f"{sizes}; {cost.model}", steps * batch, batch, cost)


def training_of_epochs(structures: int, atoms: float, epochs: int, batch_size: int, model: Any) -> Work:
    """A training whose length is given in epochs; see `training`."""
    return training(structures, atoms, epochs * -(-structures // batch_size), batch_size, model)


def simulating(replicas: int, atoms: int, steps: int, model: Any) -> Work:
    """A simulation of replicas, each of so many atoms, by a potential or one of an architecture."""
    sizes = f"{count(replicas, 'replica')} of {count(atoms, 'atom')}, {count(steps, 'step')}"
    return Work("simulation", sizes, float(replicas * atoms * steps), float(replicas * atoms), cost_of(model))
