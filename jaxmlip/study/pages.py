"""What the reports of all studies share: templates, tables in text, and how a number stands with its error."""

import json
import math
from collections.abc import Sequence
from typing import Any

import jinja2

MOST_DIGITS = 6
"""Behind the point: an error that would need more is one of rounding."""


def template_of(study: str, page: str = "report") -> jinja2.Template:
    """A page of a study, `report.html.jinja` or another, which extends `page.html.jinja` or stands alone."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxmlip.study", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    templates.filters["pretty"] = lambda content: json.dumps(content, indent=1)
    return templates.get_template(f"{study}/{page}.html.jinja")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text for a terminal, in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def value_and_error(number: dict[str, Any] | None, digits: int) -> str:
    """Value ± standard error, with so many digits or as many as show the error (up to `MOST_DIGITS`); or a dash."""
    if number is None or number["value"] is None:
        return "–"
    error = number.get("error")
    if error is None:
        return f"{number['value']:.{digits}f}"
    if 0 < error < math.inf:
        digits = max(digits, min(-math.floor(math.log10(error)), MOST_DIGITS))
    return f"{number['value']:.{digits}f} ± {error:.{digits}f}"
