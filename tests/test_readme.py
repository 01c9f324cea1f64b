"""What README.md says works."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from jaxmlip.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_python_examples_run():
    """The example as printed, from loading teachers to the errors of a lifted student."""
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(examples) == 1
    names: dict = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    assert names["run"].completed.all()
    assert names["lifted"].species == (1, 8)


def test_commands_exist():
    """Every `jaxmlip …` in the README is a command with the options it is shown with."""
    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    shown = re.findall(r"(?:uv run |`)jaxmlip ([a-z][^`\n]*)", README)
    assert shown
    for line in shown:
        words = shlex.split(line)
        command = commands[words[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        for word in words[1:]:
            flag = word.strip("[]").partition("=")[0]
            assert not flag.startswith("--") or flag in options, f"{line}: no option {flag}"


def test_configurations_of_the_readme_are_valid():
    """Configuration files the README runs are in the repository and pass the checks."""
    from jaxmlip.study.config import load_config

    paths = set(re.findall(r"experiments/\S+\.yaml", README))
    assert paths
    for path in paths:
        load_config(Path(__file__).parents[1] / path)


@pytest.mark.parametrize("name", ["simulate", "distil", "finetune", "load"])
def test_public_names(name):
    import jaxmlip

    assert name in dir(jaxmlip)
    assert callable(getattr(jaxmlip, name))


def test_unknown_name():
    import jaxmlip

    with pytest.raises(AttributeError, match="no attribute 'simulatte'"):
        _ = jaxmlip.simulatte
