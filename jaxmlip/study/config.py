"""What a study does, checked before anything runs: pydantic models, overrides, template and schema."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.study.frames import FileData
from jaxmlip.study.learning_curve_config import LearningCurve
from jaxmlip.study.section import ConfigError, Section, told_apart
from jaxmlip.training.labels import Labels
from jaxmlip.training.problem import TrainingSettings
from jaxmlip.training.strategies.continued import SingleFidelity
from jaxmlip.training.strategies.fresh import Differential, Direct
from jaxmlip.training.strategies.multi_fidelity import MultiFidelity
from jaxmlip.training.strategies.registry import STRATEGIES, AnyStrategy


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
    student: Equivariant = Equivariant()
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

    @pydantic.field_validator("strategies")
    @classmethod
    def _are_told_apart(cls, value: list[AnyStrategy]) -> list[AnyStrategy]:
        told_apart([*value])
        return value


class TrainOne(Section):
    """One potential by one strategy, from files of labelled frames."""

    study: Literal["train"] = "train"
    name: str = pydantic.Field(default="train", pattern=r"^[\w.-]+$")
    seed: int = pydantic.Field(default=0, ge=0)
    foundation: str | None = pydantic.Field(
        default=None, description="path of the student to start from; none: a new one (strategy direct)"
    )
    student: Equivariant = Equivariant()
    strategy: Annotated[AnyStrategy, pydantic.Field(description="how the student is lifted")] = Direct()
    teacher: str | None = pydantic.Field(
        default=None, description="name or path of the foundation's teacher, for differential with baseline: teacher"
    )
    labels: Labels = "energy_forces"
    data: FileData
    validation_fraction: float = pydantic.Field(default=0.1, gt=0, lt=1)
    replay: FileData | None = pydantic.Field(
        default=None, description="low-fidelity frames, for multi_fidelity and for references: shift"
    )
    training: TrainingSettings = TrainingSettings()


STUDIES: dict[str, type[Section]] = {
    "clusters_to_bulk": ClustersToBulk,
    "learning_curve": LearningCurve,
    "train": TrainOne,
}


def load_config(path: Path, overrides: list[str] | None = None) -> Section:
    """Read a YAML configuration and apply `key=value` overrides (dotted keys, YAML values).

    In a list that replaces one of the file, names stand for the file's entries of these names, fields and all:
    `strategies=[multi_fidelity]` is the file's multi-fidelity strategy alone.

    Raises:
        ConfigError: with one sentence per mistake, if the file is missing or not YAML, an override is malformed, a key
            is unknown or a value is not allowed.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration file {path}.") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} is not a readable YAML file: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no mapping of keys to values; `jaxmlip config template` prints a whole one.")
    for override in overrides or []:
        _apply(content, override)
    return resolve(content, str(path))


def resolve(content: dict, source: str) -> Section:
    """Check a mapping against the model its `study` key names; errors are `ConfigError`, as in `load_config`."""
    model = _model(content.get("study", "clusters_to_bulk"), source)
    try:
        return model.model_validate(content)
    except pydantic.ValidationError as error:
        raise ConfigError("\n".join(_sentence(source, model, e) for e in error.errors())) from None


def template(kind: str = "clusters_to_bulk") -> str:
    """A whole configuration with every default, as YAML with the meaning of each key behind it."""
    model = _model(kind, "template")
    return "\n".join(_commented(model, _defaults(model))) + "\n"


def schema(kind: str = "clusters_to_bulk") -> dict:
    """JSON schema of a configuration, for editors; errors as `load_config`."""
    return _model(kind, "schema").model_json_schema()


def _model(kind: Any, source: str) -> type[Section]:
    if kind not in STUDIES:
        raise ConfigError(f"{source}: study is {kind!r}; the studies are {', '.join(STUDIES)}.")
    return STUDIES[kind]


def _apply(content: dict, override: str) -> None:
    """Set one dotted key of a nested mapping from `key=value`."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"The override {override!r} is not of the form key=value, as in seed=1 or system.molecules=96."
        )
    *parents, last = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise ConfigError(f"The override {override!r} sets a key below {parent}, which is a single value.")
    try:
        wanted = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"The value of the override {override!r} is not YAML.") from None
    there = content.get(last)
    if isinstance(there, list) and isinstance(wanted, list):
        entries = {entry.get("title") or entry.get("name"): entry for entry in there if isinstance(entry, dict)}
        wanted = [entries.get(each, each) if isinstance(each, str) else each for each in wanted]
    content[last] = wanted


def _sentence(source: str, model: type[pydantic.BaseModel], error: Any) -> str:
    """One mistake as one sentence; for an unknown key, with the key that was probably meant."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        value = error.get("input")
        given = f" (given: {value!r})" if not isinstance(value, dict) else ""
        return f"{source}: {key}: {error['msg']}{given}."
    known = _keys_at(model, error["loc"][:-1])
    close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
    mend = f"did you mean {close[0]}?" if close else f"the keys here are {', '.join(known)}."
    return f"{source}: unknown key {key}; {mend}"


def _keys_at(model: Any, path: tuple) -> list[str]:
    """Keys allowed at a place in a configuration."""
    for part in path:
        if isinstance(model, type) and issubclass(model, pydantic.BaseModel) and part in model.model_fields:
            model = model.model_fields[part].annotation
        elif isinstance(part, str):  # the tag of a union, as pydantic reports it
            model = STRATEGIES.get(part, model)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, pydantic.BaseModel) else []


def _defaults(model: Any) -> dict:
    """The defaults of a model as plain data; a key without a default gets a placeholder to be filled in."""
    values = {}
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if field.is_required():
            is_section = isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)
            values[name] = _defaults(annotation) if is_section else f"<{name}>"
        else:
            default = field.get_default(call_default_factory=True)
            dump = pydantic.TypeAdapter(Any).dump_python
            values[name] = dump(default, mode="json")
    return values


def _commented(model: Any, values: dict, indent: int = 0) -> list[str]:
    """YAML lines of a mapping, each with its field's description as a comment; strategies are mappings too."""
    lines, pad = [], "  " * indent
    for name, value in values.items():
        field = model.model_fields.get(name) if model is not None else None
        comment = f"  # {field.description}" if field is not None and field.description else ""
        annotation = field.annotation if field is not None else None
        section = annotation if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel) else None
        if isinstance(value, dict) and value.get("name") in STRATEGIES:
            section = STRATEGIES[value["name"]]
        if isinstance(value, dict) and value:
            lines += [f"{pad}{name}:{comment}", *_commented(section, value, indent + 1)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{pad}{name}:{comment}")
            for item in value:
                first, *others = _commented(STRATEGIES[item["name"]], item, indent + 2)
                lines += [f"{pad}  - {first.strip()}", *others]
        else:
            flow = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
            lines.append(f"{pad}{name}: {flow}{comment}")
    return lines
