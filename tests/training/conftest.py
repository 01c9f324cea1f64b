"""Clusters of ice Ih, labelled at two levels of theory, for all tests of training."""

import dataclasses

import numpy as np
import pytest
from ase import Atoms
from water_pairs import HIGH, LOW

from jaxmlip.potentials.evaluation import label
from jaxmlip.systems.clusters import cut_clusters
from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.ice import ice_ih


@pytest.fixture(scope="session")
def clusters() -> list[Atoms]:
    """32 clusters of about 5 molecules of ice Ih, shaken by 0.06 Å."""
    ice = ice_ih(96, seed=0)
    ice.rattle(0.06, seed=1)
    return cut_clusters([ice], radius=3.2, number=32, seed=2)


def _labelled(clusters: list[Atoms], teacher, file: str) -> list[Frame]:
    frames = label(clusters, teacher)
    return [dataclasses.replace(f, info={"file": file, "frame": k}) for k, f in enumerate(frames)]


@pytest.fixture(scope="session")
def low(clusters: list[Atoms]) -> list[Frame]:
    return _labelled(clusters, LOW, "low.extxyz")


@pytest.fixture(scope="session")
def high(clusters: list[Atoms]) -> list[Frame]:
    return _labelled(clusters, HIGH, "high.extxyz")


@pytest.fixture(autouse=True)
def _quiet_numpy():
    """An invalid value anywhere on the host is a mistake."""
    with np.errstate(invalid="raise", divide="raise"):
        yield
