"""The report of the study across functionals: one HTML file; its words are in `report.html.jinja`."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxmlip.figures import figure, picture
from jaxmlip.files import write_text
from jaxmlip.study.cross_functional.config import CrossFunctional
from jaxmlip.study.cross_functional.errors import QUANTITIES
from jaxmlip.study.cross_functional.scales import WAYS, Scales
from jaxmlip.study.cross_functional.summary import Analysis
from jaxmlip.study.pages import aligned, template_of, value_and_error
from jaxmlip.versions import versions

COLUMNS = {
    "energy_mae_meV_atom": ("energy", "meV/atom", 1),
    "force_mae_meV_A": ("force", "meV/Å", 1),
    "stress_mae_GPa": ("stress", "GPa", 2),
    "magmom_mae_muB": ("magnetic moment", "μB", 3),
    "formation_energy_mae_meV_atom": ("formation", "meV/atom", 1),
    "decomposition_energy_mae_meV_atom": ("decomposition", "meV/atom", 1),
}
"""Mean absolute errors: in words, their unit, and digits."""

METHODS_IN_WORDS = {
    "scratch": "from scratch, references of the target",
    "source_trainable": "pretrained, references of the source, trained",
    "source_frozen": "pretrained, references of the source, frozen",
    "target": "pretrained, references of the target",
    "residual": "pretrained, references fitted to what it lacks",
}

WAYS_IN_WORDS = {"raw": "raw", "referenced": "less its own references", "exchanged": "less the other's references"}

COLORS = {"scratch": "#CC79A7", "transfer": "#0072B2"}


def write_report(path: Path, config: CrossFunctional, analysis: Analysis) -> None:
    """Write `report.html`; it needs no other file."""
    summary = analysis.summary
    page = template_of("cross_functional").render(
        config=config,
        summary=summary,
        levels=summary["levels"],
        scales=scales_table(summary),
        methods=methods_table(summary),
        scaling=scaling_table(summary),
        both=both_levels_table(summary),
        reverse=reverse_table(summary),
        worse=_worse_than_target(summary),
        figures={
            "scales": picture(draw_scales(analysis.scales, summary)),
            "methods": picture(draw_methods(summary)),
            "scaling": picture(draw_scaling(summary)) if summary["scaling"] else None,
        },
        versions=versions(),
    )
    write_text(path, page)


def summary_table(summary: dict[str, Any]) -> str:
    """The main numbers as text for a terminal."""
    return "\n\n".join(aligned(rows) for rows in (scales_table(summary), methods_table(summary)))


def scales_table(summary: dict[str, Any]) -> list[list[str]]:
    """How the energies of the two levels go together."""
    rows = [["energies", "Pearson", "95 %", "Spearman", "shift eV/atom", "spread eV/atom"]]
    for way in WAYS:
        one = summary["energy_scales"][way]
        cells = [value_and_error(one["pearson"], 3), _interval(one["pearson"], 3), value_and_error(one["spearman"], 3)]
        shift = one["shift_eV_atom"]
        rows.append([WAYS_IN_WORDS[way], *cells, value_and_error(shift, 2), f"{shift['spread']:.2f}"])
    return rows


def methods_table(summary: dict[str, Any]) -> list[list[str]]:
    """Errors of every method, for each architecture."""
    there = _measured(summary)
    rows = [["architecture", "method", *(f"{COLUMNS[key][0]} {COLUMNS[key][1]}" for key in there)]]
    for title, methods in summary["methods"].items():
        for method, errors in methods.items():
            rows.append([title, method, *(value_and_error(errors.get(key), COLUMNS[key][2]) for key in there)])
    return rows


def scaling_table(summary: dict[str, Any]) -> list[list[str]]:
    """Slopes, crossings, and whether pretraining pays at every size."""
    rows = [
        ["architecture", "error", "slope from scratch", "slope with pretraining", "lines meet at N", "pays at every N"]
    ]
    for title, one in summary["scaling"].items():
        for quantity in ("energy", "force"):
            if f"{quantity}_crossing" in one:
                slopes = [value_and_error(one[way][f"{quantity}_slope"], 2) for way in ("scratch", "transfer")]
                pays = "yes, at 95 %" if one[f"{quantity}_pays_at_every_size"] else "cannot be said at 95 %"
                rows.append([title, quantity, *slopes, _crossing(one[f"{quantity}_crossing"]), pays])
    return rows


def both_levels_table(summary: dict[str, Any]) -> list[list[str]]:
    """A potential of each level beside one with a readout for both."""
    rows = [["architecture", "level", "error", "potential of this level", "one for both", "difference"]]
    for title, levels in summary.get("multi_fidelity", {}).items():
        for level, one in levels.items():
            for key in one["difference"]:
                name, unit, digits = COLUMNS[key]
                cells = [value_and_error(one[part][key], digits) for part in ("alone", "both", "difference")]
                rows.append([title, level, f"{name} {unit}", *cells])
    return rows


def reverse_table(summary: dict[str, Any]) -> list[list[str]]:
    """What pretraining gains in either direction, as the error from scratch over the error with it."""
    rows = [["architecture", "error", "source → target", "target → source"]]
    for title, one in summary.get("reverse", {}).items():
        for quantity in one["forward_gain"]:
            gains = [_ratio(one[f"{direction}_gain"].get(quantity)) for direction in ("forward", "reverse")]
            rows.append([title, quantity, *gains])
    return rows


def draw_scales(scales: Scales, summary: dict[str, Any]) -> Figure:
    """Energies of the two levels against each other, raw and referenced, and the elements that move most."""
    drawn, axes = figure(1, 3, 10.5, 3.5)
    for ax, way in zip(axes[0], ("raw", "referenced"), strict=False):
        ax.scatter(scales.source[way], scales.target[way], s=7, color="#0072B2", alpha=0.6, lw=0)
        numbers = summary["energy_scales"][way]["pearson"]
        ax.set_title(f"{WAYS_IN_WORDS[way]}: r = {value_and_error(numbers, 3)}")
        ax.set(xlabel="source / eV per atom", ylabel="target / eV per atom")
    moved = summary["energy_scales"]["elements"]
    axes[0, 2].barh([*moved][::-1], [*moved.values()][::-1], color="0.5")
    axes[0, 2].set(xlabel="reference, target − source / eV", title="elements that move most")
    return drawn


def draw_methods(summary: dict[str, Any]) -> Figure:
    """Errors of labels by every method, on logarithmic axes."""
    there = [
        key for key in QUANTITIES.values() if any(key in m for a in summary["methods"].values() for m in a.values())
    ]
    drawn, axes = figure(1, len(there), 10.5, 3.4)
    for ax, key in zip(axes[0], there, strict=True):
        for number, (title, methods) in enumerate(summary["methods"].items()):
            shown = {method: errors[key] for method, errors in methods.items() if key in errors}
            if not shown:  # an architecture without magnetic moments
                continue
            places = np.arange(len(shown)) + 0.18 * (number - 0.5 * (len(summary["methods"]) - 1))
            values = [one["value"] for one in shown.values()]
            bars = [one["error"] or 0.0 for one in shown.values()]
            ax.errorbar(places, values, bars, fmt="osD^v"[number % 5], ms=5, capsize=2, label=title)
            ax.set_xticks(range(len(shown)), [name.replace("_", "\n") for name in shown], fontsize=7)
        ax.set(ylabel=f"{COLUMNS[key][0]} MAE / {COLUMNS[key][1]}", yscale="log")
    axes[0, 0].legend(fontsize=7)
    return drawn


def draw_scaling(summary: dict[str, Any]) -> Figure:
    """Errors against the number of target structures, with and without pretraining."""
    drawn, axes = figure(2, len(summary["scaling"]), 10.5, 5.6)
    for column, (title, one) in enumerate(summary["scaling"].items()):
        for row, quantity in enumerate(("energy", "force")):
            _draw_curves(axes[row, column], summary["sizes"], one, quantity)
        axes[0, column].set_title(title)
    axes[0, 0].legend(fontsize=8)
    return drawn


def _draw_curves(ax: Axes, sizes: list[int], one: dict[str, Any], quantity: str) -> None:
    key = QUANTITIES[quantity]
    for way, words in (("scratch", "from scratch"), ("transfer", "pretrained")):
        if key in one[way]:
            values = np.array([each["value"] for each in one[way][key]])
            bars = np.array([each["error"] or 0.0 for each in one[way][key]])
            slope = value_and_error(one[way][f"{quantity}_slope"], 2)
            ax.errorbar(sizes, values, bars, fmt="o", ms=4, capsize=2, color=COLORS[way], label=words)
            x = np.log(np.array(sizes, float))
            line = np.polyval(np.polyfit(x, np.log(values), 1), x)
            ax.plot(sizes, np.exp(line), color=COLORS[way], lw=1)
            ax.annotate(slope, (sizes[-1], np.exp(line[-1])), fontsize=7, ha="right", va="bottom", color=COLORS[way])
    ax.set(xlabel="target structures N", ylabel=f"{quantity} MAE / {COLUMNS[key][1]}", xscale="log", yscale="log")


def _measured(summary: dict[str, Any]) -> list[str]:
    """The errors of methods that there are labels for, in the order of the columns."""
    return [key for key in COLUMNS if any(key in m for a in summary["methods"].values() for m in a.values())]


def _worse_than_target(summary: dict[str, Any]) -> list[str]:
    """For each architecture and method, whether its energies are worse than with the target's references."""
    sentences = []
    for title, methods in summary["comparisons"].items():
        for method, differences in methods.items():
            one = differences.get("energy_mae_meV_atom")
            if one is None or one["interval"][0] is None:
                continue
            low, high = one["interval"]
            said = "worse" if low > 0 else "better" if high < 0 else "not told apart"
            difference = value_and_error(one, 1)
            sentences.append(f"{title}, {method}: {said} ({difference} meV/atom, 95 % {_interval(one, 1)})")
    return sentences


def _interval(number: dict[str, Any], digits: int) -> str:
    low, high = number["interval"]
    return "–" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def _crossing(one: dict[str, Any]) -> str:
    where = one["log10_size"]
    share = f"{one['share_of_draws']:.0%} of draws meet"
    if where["value"] is None:
        return f"nowhere beyond ({share})"
    bounds = "" if where["low"] is None else f", 10^{where['low']:.1f} to 10^{where['high']:.1f}"
    return f"10^{where['value']:.1f}{bounds} ({share})"


def _ratio(gain: dict[str, Any] | None) -> str:
    """A logarithm of a ratio as the ratio with its interval."""
    if gain is None or gain["value"] is None:
        return "–"
    low, high = gain["interval"]
    bounds = "" if low is None or high is None else f" ({np.exp(low):.2f} to {np.exp(high):.2f})"
    return f"{np.exp(gain['value']):.2f}{bounds}"
