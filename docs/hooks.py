"""What pages of the documentation take from the package when the site is built."""

import re
from typing import Any

NAMES = "{{ public names }}"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Templates of configurations and the public names, as they are now."""
    from jaxmlip.study.config import template

    markdown = re.sub(r"\{\{ template (\w+) \}\}", lambda found: f"```yaml\n{template(found[1])}```", markdown)
    return markdown.replace(NAMES, _public_names()) if NAMES in markdown else markdown


def _public_names() -> str:
    """A heading for each room, and below it the documentation of what it makes public."""
    from jaxmlip import _HOME

    rooms: dict[str, list[str]] = {}
    for name, home in sorted(_HOME.items()):
        rooms.setdefault(home.partition(".")[0], []).append(f"::: jaxmlip.{home}.{name}")
    order = ("systems", "potentials", "observables", "training", "simulation", "validation", "study")
    return "\n\n".join(f"## {room.capitalize()}\n\n" + "\n\n".join(rooms[room]) for room in order)
