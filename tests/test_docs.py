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

LINKED = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("experiments/**/*.md"), *ROOT.glob("tests/*.md")])
"""Pages whose links are followed."""

FOLDERS = ("docs", "experiments", "jaxmlip", "tests", ".ci")
"""Of the repository; what pages name in them has to be there."""

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
def test_pages_are_in_the_navigation(page: str) -> None:
    assert re.search(rf"\b{re.escape(page)}$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as the site and GitHub make them of words and digits."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.replace("`", "").lower()).strip().replace(" ", "-") for head in heads}


def dead_links(page: Path) -> list[str]:
    """Relative links and pictures of a page, and files that it names in the repository, that lead nowhere."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    dead = []
    for link in re.findall(r"\]\(\s*<?([^)\s>]+)", text):
        path, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    for name in re.findall(rf"`((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]+)`", text):
        if not (ROOT / name).exists():
            dead.append(name)
    return dead


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Also those that lead out of `docs/`, which the site's own check does not follow."""
    assert dead_links(page) == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    """Or the test above says nothing."""
    page = tmp_path / "page.md"
    page.write_text(
        "# One `word`, two\n[a](page.md) [b](#one-word-two) [c](https://x.y) ![d](gone.png) [e](page.md#three)\n"
        "`experiments/gone/README.md` `docs/index.md`\n```\n[f](code.md)\n```\n"
    )
    assert dead_links(page) == ["gone.png", "page.md#three", "experiments/gone/README.md"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: uv sync")
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Every page is in the navigation, every link leads somewhere, every name has its documentation."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "five_minutes" / "index.html").is_file()
