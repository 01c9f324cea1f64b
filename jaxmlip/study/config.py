"""Configurations, checked before anything runs: reading, overrides, template and schema."""

import difflib
from pathlib import Path
from typing import Any, get_args

import pydantic
import yaml

from jaxmlip.potentials.models import MODELS
from jaxmlip.study.registry import STUDIES
from jaxmlip.study.section import ConfigError, Section
from jaxmlip.training.strategies.registry import STRATEGIES


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
    if content.get("workers") is not None and "workers" not in model.model_fields:
        raise ConfigError(
            f"{source}: workers: the study {content.get('study')} is one piece of work, which cannot be shared; leave "
            "workers out."
        )
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
    study = STUDIES.find(kind)
    if study is None:
        raise ConfigError(f"{source}: study is {kind!r}; the studies are {', '.join(STUDIES.names())}.")
    return study.config


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
    # The kind of an architecture is no key of the path to its fields, but pydantic reports it as one.
    key = ".".join(str(part) for part in error["loc"] if part not in MODELS)
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
            model = _section_in(model.model_fields[part].annotation)
        elif isinstance(part, str):  # the tag of a union, as pydantic reports it
            model = STRATEGIES.get(part, MODELS.get(part, model))
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, pydantic.BaseModel) else []


def _section_in(annotation: Any) -> Any:
    """The section that a key holds: alone, in a list, or where it may be null."""
    sections = [each for each in get_args(annotation) if isinstance(each, type) and issubclass(each, Section)]
    return sections[0] if len(sections) == 1 else annotation


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
            values[name] = dump(default, mode="json", context={"whole": True})
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
                first, *others = _commented(STRATEGIES.get(item.get("name", "")), item, indent + 2)
                lines += [f"{pad}  - {first.strip()}", *others]
        else:
            flow = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
            lines.append(f"{pad}{name}: {flow}{comment}")
    return lines
