"""Runs of `fathom train` on real Ray clusters of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.home import Done, Home, prepare_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="session")
def make_home(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Home]]:
    made: list[Home] = []

    def make() -> Home:
        made.append(Home.make(tmp_path_factory.mktemp("home"), data))
        return made[-1]

    yield make
    for home in made:
        home.end_all()


@pytest.fixture(scope="session")
def calm(make_home: Callable[[], Home]) -> tuple[Home, Done]:
    """The run that nothing happened to."""
    home = make_home()
    return home, home.fathom("train", "job.yaml", "-o", "json")
