"""Figures of reports: their style, and how they stand inside a page."""

import base64
import io
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

PIXELS_PER_INCH = 105
"""Of figures as a page shows them; they are drawn finer."""


def figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    """A figure of several axes in the style of the reports; close it when it is written."""
    with plt.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "axes.titlesize": 9}):
        return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)


def picture(figure: Figure) -> dict[str, Any]:
    """A figure as an image that stands inside the page, closed."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    plt.close(figure)
    width = round(PIXELS_PER_INCH * figure.get_figwidth())  # so that letters are as large in every figure
    return {"png": base64.b64encode(png.getvalue()).decode(), "width": width}
