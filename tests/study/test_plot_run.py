"""The picture of a run says what averages say."""

from pathlib import Path

import numpy as np
import pytest
from made_runs import as_run
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from typer.testing import CliRunner

from jaxmlip.cli import app
from jaxmlip.simulation.trajectory import Outcome, Run
from jaxmlip.study.plot_run import plot_run


@pytest.fixture
def run() -> Run:
    """Two replicas of eight atoms at random places of a cell that stays."""
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 9, (2, 60, 8, 3))
    return as_run(positions, np.array([29, 29, 29, 29, 79, 79, 79, 79]), 9.0 * np.eye(3))


def labels(drawn: Figure) -> list[str]:
    return [ax.get_ylabel() for ax in drawn.axes if ax.axison]


def test_what_is_drawn(run: Run) -> None:
    """A line for each replica, the average with its error in words, all pairs of elements; no density at rest."""
    drawn = plot_run(run, equilibration=0.2)
    assert labels(drawn) == ["temperature / K", "potential energy / eV atom$^{-1}$", "g(r)"]
    temperature, energy, distribution = drawn.axes[:3]
    assert len(temperature.get_lines()) == 2 + 1
    np.testing.assert_allclose(energy.get_lines()[0].get_ydata(), run.potential_energy[0] / 8)
    assert np.asarray(energy.get_lines()[-1].get_ydata())[0] == pytest.approx(run.potential_energy[:, 20:].mean() / 8)
    words = [text.get_text() for text in distribution.get_legend().get_texts()]  # pyright: ignore[reportOptionalMemberAccess]
    assert words == ["Cu–Cu", "Cu–Au", "Au–Au"]
    plt.close(drawn)


def test_density_where_the_cell_moves(run: Run) -> None:
    cells = np.broadcast_to(9.0 * np.eye(3), (2, 60, 3, 3)).copy()
    cells *= 1 + 0.01 * np.random.default_rng(1).normal(size=(2, 60, 1, 1))
    drawn = plot_run(as_run(run.positions, run.numbers, 9.0 * np.eye(3), cells=cells), equilibration=0.2)
    assert labels(drawn)[2] == "density / g cm$^{-3}$"
    plt.close(drawn)


def test_failed_replicas_are_left_out(run: Run) -> None:
    failed = as_run(run.positions, run.numbers, 9.0 * np.eye(3), outcomes=(Outcome.COMPLETED, Outcome.NOT_FINITE))
    drawn = plot_run(failed, equilibration=0.2)
    assert len(drawn.axes[0].get_lines()) == 1 + 1
    plt.close(drawn)
    none = as_run(run.positions, run.numbers, 9.0 * np.eye(3), outcomes=(Outcome.NOT_FINITE,) * 2)
    with pytest.raises(ValueError, match="No replica ran to the end"):
        plot_run(none)


def test_on_the_command_line(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path / "run.h5")
    result = CliRunner().invoke(app, ["plot", str(tmp_path / "run.h5"), "--equilibration-ps", "0.2"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    missing = CliRunner().invoke(app, ["plot", str(tmp_path / "none.h5")])
    assert missing.exit_code == 1
    assert "none.h5" in missing.output
