"""Configuration of clusters to bulk: a crystal, two teachers, a student, ways to lift it, and when it is trusted."""

from typing import Any, Literal

import pydantic
from pydantic import PositiveInt

from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.models import AnyModel
from jaxmlip.simulation.barostats import NPT, CellMotion
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.ensembles import NVT
from jaxmlip.study.section import Section, told_apart
from jaxmlip.study.workers import WORKERS, Workers
from jaxmlip.training.labels import Labels
from jaxmlip.training.problem import TrainingSettings
from jaxmlip.training.strategies.continued import SingleFidelity
from jaxmlip.training.strategies.fresh import Differential, Direct
from jaxmlip.training.strategies.multi_fidelity import MultiFidelity
from jaxmlip.training.strategies.registry import AnyStrategy


class System(Section):
    """The condensed phase under test: ice Ih, or another crystal of molecules from a file."""

    structure: str | None = pydantic.Field(
        default=None, description="file with a cell of another crystal of molecules, any that ASE reads; null: ice Ih"
    )
    repeat: tuple[PositiveInt, PositiveInt, PositiveInt] = pydantic.Field(
        default=(1, 1, 1), description="how often the cell of that file is repeated along its vectors"
    )
    molecules: int = pydantic.Field(default=32, ge=16, description="molecules of ice Ih in the periodic cell")
    density_g_cm3: float = pydantic.Field(default=0.92, gt=0, description="density of the cell of ice, g/cm³")
    temperature_K: float = pydantic.Field(default=250.0, gt=0, description="temperature of every simulation, K")

    @pydantic.model_validator(mode="after")
    def _is_one_crystal(self) -> "System":
        given = self.model_fields_set
        if self.structure is not None and (of_ice := sorted({"molecules", "density_g_cm3"} & given)):
            raise ValueError(f"{' and '.join(of_ice)} is of ice, and structure names another crystal: leave one out")
        if self.structure is None and "repeat" in given and self.repeat != (1, 1, 1):
            raise ValueError("repeat is of the cell in a file: give structure, or more molecules of ice")
        return self

    @pydantic.model_serializer(mode="wrap")
    def _one_crystal(self, handler: Any) -> Any:
        """Of ice as in earlier versions, so that digests in folders of studies still fit; or of the file alone."""
        left_out = ("structure", "repeat") if self.structure is None else ("molecules", "density_g_cm3")
        return {name: value for name, value in handler(self).items() if name not in left_out}


class Teachers(Section):
    """The two levels of theory."""

    low: str = pydantic.Field(default="chgnet:gga", description="cheap level of theory: name or path of a potential")
    high: str = pydantic.Field(
        default="chgnet:r2scan", description="accurate level of theory: name or path of a potential"
    )


class Dynamics(Section):
    """One simulation of several replicas (Langevin)."""

    replicas: int = pydantic.Field(default=4, ge=1, description="independent replicas, run as one program")
    time_ps: float = pydantic.Field(default=0.5, gt=0, description="length of each replica, ps")
    timestep_fs: float = pydantic.Field(default=0.5, gt=0, description="time step, fs")
    sample_every_fs: float = pydantic.Field(default=5.0, gt=0, description="time between stored frames, fs")
    friction_per_ps: float = pydantic.Field(default=5.0, gt=0, description="Langevin friction, 1/ps")


class Sampling(Dynamics):
    """Simulation with the low teacher that the training structures come from."""

    discard_ps: float = pydantic.Field(default=0.1, ge=0, description="start of each replica that is thrown away, ps")
    bulk_frames: int = pydantic.Field(
        default=24, ge=4, description="bulk frames kept as training structures and as parents"
    )


class ChosenEnsemble(Section):
    """An ensemble in which teacher and students are simulated, by `dynamics` but for what is said here."""

    ensemble: Literal["NVT", "NPT"] = pydantic.Field(default="NVT", description="NVT, or NPT for a density")
    temperature_K: float | None = pydantic.Field(default=None, gt=0, description="K; that of the system by default")
    pressure_GPa: float = pydantic.Field(default=0.0, description="of NPT, GPa")
    cell: CellMotion = pydantic.Field(
        default="isotropic", description="of NPT, what of the cell moves: isotropic, orthorhombic or flexible"
    )
    pressure_time_ps: float = pydantic.Field(default=1.0, gt=0, description="of NPT, relaxation time of the volume, ps")
    time_ps: float | None = pydantic.Field(default=None, gt=0, description="length of each replica, ps, if another")

    @property
    def called(self) -> str:
        """What results call it: NVT, NPT-flexible-270K."""
        parts = [self.ensemble]
        if self.ensemble == "NPT":
            parts += [f"{self.pressure_GPa:g}GPa"] if self.pressure_GPa else []
            parts += [self.cell] if self.cell != "isotropic" else []
        return "-".join([*parts, *([f"{self.temperature_K:g}K"] if self.temperature_K else [])])

    def made(self, system: System, friction_per_ps: float) -> Ensemble:
        """The ensemble itself."""
        temperature = self.temperature_K or system.temperature_K
        if self.ensemble == "NVT":
            return NVT(temperature_K=temperature, friction_per_ps=friction_per_ps)
        return NPT(
            temperature_K=temperature,
            pressure_GPa=self.pressure_GPa,
            cell=self.cell,
            pressure_time_ps=self.pressure_time_ps,
            friction_per_ps=friction_per_ps,
        )


class Clusters(Section):
    """Whole-molecule clusters cut from the bulk frames; the only structures with accurate labels."""

    radius: float = pydantic.Field(
        default=4.0, gt=0, description="a cluster is every molecule with its central atom (O of water) this near, Å"
    )
    number: int = pydantic.Field(default=100, ge=4, description="clusters in all")
    validation_fraction: float = pydantic.Field(
        default=0.2, gt=0, lt=1, description="share of clusters kept for validation"
    )


class Test(Section):
    """Bulk frames of the high teacher's own simulation, on which errors are measured. Nothing is tuned on them."""

    frames: int = pydantic.Field(default=16, ge=2, description="frames of the high teacher's run, evenly spaced")


class Verdict(Section):
    """When a student is called trustworthy."""

    sigma: float = pydantic.Field(
        default=2.0, gt=0, description="deviations below this many standard errors are not significant"
    )
    energy_tolerance_meV_molecule: float = pydantic.Field(
        default=10.0, ge=0, description="deviation of the mean potential energy that does no harm, meV per molecule"
    )
    rdf_tolerance_A: float = pydantic.Field(
        default=0.1, ge=0, description="RDF error beyond sampling noise that does no harm, Å"
    )
    force_tolerance: float = pydantic.Field(default=0.1, ge=0, description="force RMSE as a fraction of the RMS force")
    density_tolerance: float = pydantic.Field(
        default=0.01, ge=0, description="relative deviation of the mean density (NPT) that does no harm"
    )
    level: float = pydantic.Field(
        default=0.95, gt=0.5, lt=1, description="at which the questions of the study are answered"
    )


class ClustersToBulk(Section):
    """Does a potential lifted to an accurate level of theory on clusters describe the bulk?"""

    study: Literal["clusters_to_bulk"] = "clusters_to_bulk"
    name: str = pydantic.Field(default="quick", pattern=r"^[\w.-]+$", description="results go to runs/<name>/")
    seed: int = pydantic.Field(default=0, ge=0, description="every random number follows from this one")
    system: System = System()
    teachers: Teachers = Teachers()
    sampling: Sampling = Sampling()
    clusters: Clusters = Clusters()
    student: AnyModel = Equivariant()
    distillation: TrainingSettings = TrainingSettings()
    finetuning: TrainingSettings = TrainingSettings()
    strategies: list[AnyStrategy] = pydantic.Field(
        default=[Direct(), Differential(), SingleFidelity(), MultiFidelity()],
        min_length=1,
        description="ways to lift a student",
    )
    labels: list[Labels] = pydantic.Field(
        default=["energy_forces", "energy"], min_length=1, description="accurate labels that fine-tuning may see"
    )
    seeds: int = pydantic.Field(
        default=1,
        ge=1,
        description="students of each strategy and set of labels, which differ in the random numbers of their training "
        "and simulation; their spread is part of every error",
    )
    own_foundations: bool = pydantic.Field(
        default=False, description="whether each of these students is lifted from a foundation of its own"
    )
    dynamics: Dynamics = Dynamics()
    ensembles: list[ChosenEnsemble] = pydantic.Field(
        default=[ChosenEnsemble()],
        min_length=1,
        description="of the simulations; frames of the teacher's first one are what errors are measured on",
    )
    test: Test = Test()
    verdict: Verdict = Verdict()
    workers: Workers | None = WORKERS

    @pydantic.field_validator("strategies")
    @classmethod
    def _are_told_apart(cls, value: list[AnyStrategy]) -> list[AnyStrategy]:
        told_apart([*value])
        return value

    @pydantic.field_validator("ensembles", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """`[NVT, NPT]` is short for two ensembles with every default."""
        if not isinstance(value, list):
            return value
        return [{"ensemble": each} if isinstance(each, str) else each for each in value]

    @pydantic.field_validator("ensembles")
    @classmethod
    def _are_different(cls, value: list[ChosenEnsemble]) -> list[ChosenEnsemble]:
        names = [each.called for each in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{' and '.join(twice)} is there more than once; leave one of them out")
        return value

    @pydantic.model_validator(mode="after")
    def _has_students(self) -> "ClustersToBulk":
        if not any(set(self.labels) & set(strategy.sees) for strategy in self.strategies):
            wanted = sorted({labels for strategy in self.strategies for labels in strategy.sees})
            raise ValueError(f"none of the strategies works with these labels; add {' or '.join(wanted)} to labels")
        return self
