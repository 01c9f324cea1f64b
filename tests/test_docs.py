"""The documentation: its examples run, its pages are whole, its commands exist."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from jaxmlip.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
REASON = re.compile(r"<!-- not run: .+ -->\n$")

IN_ORDER = (
    "five_minutes.md",
    "dynamics.md",
    "gradients.md",
    "teachers.md",
    "energies_only.md",
    "accelerators.md",
    "extending.md",
)
"""Pages whose examples go on from one another."""

LONG = ("dynamics.md", "gradients.md")
"""Pages left out by default: derivatives of a network's simulations take long to compile, and other tests have them."""


def examples(page: str, language: str = "python") -> list[str]:
    """Blocks of a page that are to be run: those without a word on why not."""
    text = (DOCS / page).read_text()
    blocks = re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [block[1] for block in blocks if not REASON.search(text[: block.start()])]


@pytest.mark.parametrize(
    "left_out", [pytest.param(LONG, id="short"), pytest.param((), id="all", marks=pytest.mark.slow)]
)
def test_examples_run(left_out: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One page after another, in a folder of their own; a failure names page and block."""
    monkeypatch.chdir(tmp_path)
    assert {page for page in PAGES if examples(page)} == {*IN_ORDER}
    names: dict[str, Any] = {"__name__": "documentation"}
    for page in (page for page in IN_ORDER if page not in left_out):
        for number, block in enumerate(examples(page), start=1):
            exec(compile(block, f"docs/{page}, block {number}", "exec"), names)


def test_configurations_are_valid() -> None:
    """Blocks of YAML are configurations of ours."""
    from jaxmlip.study.config import resolve

    blocks = [block for page in PAGES for block in examples(page, "yaml")]
    assert blocks
    for block in blocks:
        resolve(yaml.safe_load(block), "a page")


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    """Every `jaxmlip …` of a page is a command with the options that it is shown with."""
    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    for line in re.findall(r"(?:uv run |`|^    )jaxmlip ([a-z][^`\n]*)", (DOCS / page).read_text(), flags=re.MULTILINE):
        words = shlex.split(line.replace("[", "").replace("]", ""))
        assert words[0] in commands, f"{page}: {line}"
        options = {option for parameter in commands[words[0]].params for option in parameter.opts}
        for word in words[1:]:
            flag = word.partition("=")[0]
            assert not flag.startswith("--") or flag in options, f"{page}, {line}: no option {flag}"


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_found(page: str) -> None:
    """In the navigation, and what their relative links name is there."""
    assert re.search(rf"\b{re.escape(page)}$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    for link in re.findall(r"\]\(([^)#\s]+)", (DOCS / page).read_text()):
        assert "://" in link or (DOCS / link).exists(), f"{page}: {link}"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: uv sync")
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Every page is in the navigation, every link leads somewhere, every name has its documentation."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "five_minutes" / "index.html").is_file()
