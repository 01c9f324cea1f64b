"""The numbers of the study, each with its error over seeds and test compositions and its sample sizes."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmlip.study.cross_functional import resampling
from jaxmlip.study.cross_functional.config import CrossFunctional
from jaxmlip.study.cross_functional.data import LEVELS, PARTS, Data
from jaxmlip.study.cross_functional.errors import QUANTITIES
from jaxmlip.study.cross_functional.phases import decomposition_energies, formation_energies
from jaxmlip.study.cross_functional.resampling import Errors, measured
from jaxmlip.study.cross_functional.scales import Scales, energy_scales
from jaxmlip.study.cross_functional.stages import FOUNDATION, MULTI_FIDELITY, TRANSFER, Case
from jaxmlip.study.workspace import Stage
from jaxmlip.systems.compositions import composition
from jaxmlip.versions import versions

PHASES = {"formation": "formation_energy_mae_meV_atom", "decomposition": "decomposition_energy_mae_meV_atom"}

Arms = Mapping[tuple[str, str, str, int], dict[str, Errors]]
"""By direction, architecture, method and size: errors by quantity."""


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What tables and figures are made from."""

    scales: Scales
    summary: dict[str, Any]


def analyse(config: CrossFunctional, data: Data, tests: Mapping[Case, Stage]) -> Analysis:
    """The content of `summary.json`, and what its figures show."""
    arms = _arms(data, tests)
    scales = energy_scales(data.pairs(), (data.references("source"), data.references("target")), config.seed)
    architectures = [*config.architectures]
    summary: dict[str, Any] = {
        "study": config.study,
        "name": config.name,
        "seed": config.seed,
        "seeds": config.seeds,
        "sizes": config.sizes,
        "levels": _levels(config),
        "structures": {level: {part: len(data.frames(level, part)) for part in PARTS} for level in LEVELS},
        "test_compositions": len({composition(frame.atoms) for frame in data.frames("target", "test")}),
        "energy_scales": scales.summary,
        "methods": {title: _methods(config, arms, title) for title in architectures},
        "comparisons": {title: _comparisons(config, arms, title) for title in architectures},
        "scaling": {title: _scaling(config, arms, title) for title in architectures} if len(config.sizes) > 1 else {},
    }
    if config.multi_fidelity_replay:
        summary["multi_fidelity"] = {title: _both_levels(config, arms, title) for title in architectures}
    if config.reverse:
        summary["reverse"] = {title: _reverse(config, arms, title) for title in architectures}
    summary["diverged"] = sorted(case.name for case, stage in tests.items() if _diverged(case, stage))
    return Analysis(scales, summary | {"versions": versions()})


def _levels(config: CrossFunctional) -> dict[str, str]:
    if config.files is not None:
        return {level: getattr(config.files, level).name for level in LEVELS}
    return {"source": config.source, "target": config.target}


def _diverged(case: Case, stage: Stage) -> bool:
    outcome = stage.folder.parent / case.name / "outcome.json"
    return json.loads(outcome.read_text())["diverged"] is not None


def _arms(data: Data, tests: Mapping[Case, Stage]) -> Arms:
    """The errors of all potentials, seeds of an arm together."""
    truth = _true_phases(data)
    together: dict[tuple[str, str, str, int], list[tuple[int, Stage]]] = {}
    for case, stage in tests.items():
        key = case.direction, case.architecture, case.method, case.size
        together.setdefault(key, []).append((case.seed, stage))
    found: dict[tuple[str, str, str, int], dict[str, Errors]] = {}
    for key, members in together.items():
        stages = [stage for _, stage in sorted(members, key=lambda member: member[0])]
        found[key] = _stacked([_read(stage, "errors") for stage in stages])
        if key[2] == MULTI_FIDELITY:
            direction, architecture, method, size = key
            source = _stacked([_read(stage, "source_errors") for stage in stages])
            found[direction, architecture, f"{method} source", size] = source
        if truth is not None and (stages[0].folder / "phases.json").exists():
            found[key] |= _phase_errors([_read(stage, "phases") for stage in stages], truth)
    return found


def _read(stage: Stage, name: str) -> dict[str, Any]:
    return json.loads((stage.folder / f"{name}.json").read_text())


def _stacked(records: Sequence[dict[str, Any]]) -> dict[str, Errors]:
    names = tuple(records[0]["compositions"])
    return {
        quantity: Errors(
            np.array([record[quantity]["sums"] for record in records], float),
            np.array(records[0][quantity]["counts"], float),
            names,
        )
        for quantity in QUANTITIES
        # Tests of earlier versions know of no magnetic moments.
        if all(any(record.get(quantity, {}).get("counts", ())) for record in records)
    }


def _true_phases(data: Data) -> dict[str, dict[str, float]] | None:
    """The target's energies of formation and decomposition of the compounds that were tested, eV/atom."""
    hull = data.hull()
    if not hull:
        return None
    tested = {composition(frame.atoms) for frame in data.frames("target", "test")}
    names = [composition(frame.atoms) for frame in hull]
    values = {"formation": formation_energies(hull), "decomposition": decomposition_energies(hull)}
    return {
        kind: {name: float(value) for name, value in zip(names, each, strict=True) if name in tested}
        for kind, each in values.items()
    }


def _phase_errors(records: Sequence[dict[str, Any]], truth: dict[str, dict[str, float]]) -> dict[str, Errors]:
    names = [name for name in records[0]["compositions"] if name in truth["formation"]]
    found = {}
    for kind in PHASES:
        said = [dict(zip(record["compositions"], record[kind], strict=True)) for record in records]
        sums = np.array([[1e3 * abs(one[name] - truth[kind][name]) for name in names] for one in said])
        found[kind] = Errors(sums, np.ones(len(names)), tuple(names))
    return found


def _errors(arm: dict[str, Errors]) -> dict[str, Any]:
    """Mean absolute errors of an arm by their names in summaries."""
    names = QUANTITIES | PHASES
    return {names[name]: measured([errors], resampling.mean).to_json() for name, errors in arm.items()}


def _methods(config: CrossFunctional, arms: Arms, title: str) -> dict[str, Any]:
    return {method: _errors(arms["forward", title, method, config.sizes[-1]]) for method in config.methods}


def _comparisons(config: CrossFunctional, arms: Arms, title: str) -> dict[str, Any]:
    """The error of each method less that of `target`: whose interval is above zero, that method is the worse."""
    best = arms["forward", title, TRANSFER, config.sizes[-1]]
    others = {m: arms["forward", title, m, config.sizes[-1]] for m in config.methods if m != TRANSFER}
    return {method: _differences(best, other) for method, other in others.items()}


def _differences(one: dict[str, Errors], other: dict[str, Errors]) -> dict[str, Any]:
    """The other's mean absolute errors less the one's."""
    return {
        name: measured([one[quantity], other[quantity]], resampling.difference).to_json()
        for quantity, name in QUANTITIES.items()
        if quantity in one and quantity in other
    }


def _scaling(config: CrossFunctional, arms: Arms, title: str) -> dict[str, Any]:
    """Errors against size, slopes, where curves would cross, and whether pretraining pays at every size."""
    ways = {"scratch": "scratch", "transfer": TRANSFER}
    found: dict[str, Any] = {way: {} for way in ways}
    for quantity in ("energy", "force"):
        curves = {way: [arms["forward", title, method, size] for size in config.sizes] for way, method in ways.items()}
        if any(quantity not in arm for arms_of in curves.values() for arm in arms_of):
            continue
        errors = {way: [arm[quantity] for arm in arms_of] for way, arms_of in curves.items()}
        slope = resampling.slope(config.sizes)
        for way, each in errors.items():
            found[way][f"{quantity}_slope"] = measured(each, slope).to_json()
            found[way][QUANTITIES[quantity]] = [measured([one], resampling.mean).to_json() for one in each]
        gains = [
            measured([one, other], resampling.log_ratio)
            for one, other in zip(errors["transfer"], errors["scratch"], strict=True)
        ]
        found[f"{quantity}_gain"] = [gain.to_json() for gain in gains]
        found[f"{quantity}_pays_at_every_size"] = bool(all(gain.interval()[0] > 0 for gain in gains))
        found[f"{quantity}_crossing"] = resampling.crossing(errors["scratch"], errors["transfer"], config.sizes)
    return found


def _both_levels(config: CrossFunctional, arms: Arms, title: str) -> dict[str, Any]:
    """One potential for both levels beside one for each: differences are above zero where it is worse."""
    largest = config.sizes[-1]
    pairs = {
        "target": (arms["forward", title, TRANSFER, largest], arms["forward", title, MULTI_FIDELITY, largest]),
        "source": (
            arms["forward", title, FOUNDATION, 0],
            arms["forward", title, f"{MULTI_FIDELITY} source", largest],
        ),
    }
    return {
        level: {
            "alone": _errors({q: alone[q] for q in QUANTITIES if q in alone}),
            "both": _errors({q: both[q] for q in QUANTITIES if q in both}),
            "difference": _differences(alone, both),
        }
        for level, (alone, both) in pairs.items()
    }


def _reverse(config: CrossFunctional, arms: Arms, title: str) -> dict[str, Any]:
    """The other direction, and what pretraining gains in each: log error from scratch over that with it."""
    largest = config.sizes[-1]
    found: dict[str, Any] = {
        way: _errors(arms["reverse", title, method, largest])
        for way, method in (("scratch", "scratch"), ("transfer", TRANSFER))
    }
    for direction in ("forward", "reverse"):
        scratch, transfer = (arms[direction, title, method, largest] for method in ("scratch", TRANSFER))
        found[f"{direction}_gain"] = {
            quantity: measured([transfer[quantity], scratch[quantity]], resampling.log_ratio).to_json()
            for quantity in QUANTITIES
            if quantity in transfer and quantity in scratch
        }
    return found
