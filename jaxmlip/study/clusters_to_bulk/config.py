"""Configuration of clusters to bulk: ice, two teachers, a student, ways to lift it, and when it is trusted."""

from typing import Literal

import pydantic

from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.models import AnyModel
from jaxmlip.study.section import Section, told_apart
from jaxmlip.study.workers import WORKERS, Workers
from jaxmlip.training.labels import Labels
from jaxmlip.training.problem import TrainingSettings
from jaxmlip.training.strategies.continued import SingleFidelity
from jaxmlip.training.strategies.fresh import Differential, Direct
from jaxmlip.training.strategies.multi_fidelity import MultiFidelity
from jaxmlip.training.strategies.registry import AnyStrategy


class System(Section):
    """The condensed phase under test."""

    molecules: int = pydantic.Field(default=32, ge=16, description="molecules of ice Ih in the periodic cell")
    density_g_cm3: float = pydantic.Field(default=0.92, gt=0, description="density of the cell, g/cm³")
    temperature_K: float = pydantic.Field(default=250.0, gt=0, description="temperature of every simulation, K")


class Teachers(Section):
    """The two levels of theory."""

    low: str = pydantic.Field(default="chgnet:gga", description="cheap level of theory: name or path of a potential")
    high: str = pydantic.Field(
        default="chgnet:r2scan", description="accurate level of theory: name or path of a potential"
    )


class Dynamics(Section):
    """One NVT simulation (Langevin)."""

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


class Clusters(Section):
    """Whole-molecule clusters cut from the bulk frames; the only structures with accurate labels."""

    radius: float = pydantic.Field(default=4.0, gt=0, description="a cluster is every molecule with its O this near, Å")
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
    dynamics: Dynamics = Dynamics()
    test: Test = Test()
    verdict: Verdict = Verdict()
    workers: Workers | None = WORKERS

    @pydantic.field_validator("strategies")
    @classmethod
    def _are_told_apart(cls, value: list[AnyStrategy]) -> list[AnyStrategy]:
        told_apart([*value])
        return value
