"""Runs of `fathom train` on real Ray clusters of this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support.home import LONG_PATIENCE, Done, Home, prepare_data
from support.mlflow_tables import copied

from orchestrator.launch.locks import locked

Once = Callable[[str, Callable[[Path], Any]], tuple[Path, Any]]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """What takes long to make is made by the first of pytest's processes that wants it; -> its folder and result."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def found(name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
        root, result = shared / name, shared / f"{name}.json"
        with locked(shared / f"{name}.lock", patience=LONG_PATIENCE) as mine:
            assert mine, f"{name} is being made by another process, which takes too long"
            if not result.exists():
                assert not root.exists(), f"{name} could not be made; see the first test that wanted it"
                result.write_text(json.dumps(make(root)))
        return root, json.loads(result.read_text())

    return found


@pytest.fixture(scope="session")
def data(once: Once) -> Path:
    root, _ = once("corpus", lambda root: str(prepare_data(root)))
    return root / "data"


@pytest.fixture(scope="session")
def make_home(
    data: Path, mlflow_tables: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Home]]:
    """Whose MLflow has its tables; that of the calm run makes them."""
    made: list[Home] = []

    def make() -> Home:
        made.append(Home.make(tmp_path_factory.mktemp("home"), data))
        copied(mlflow_tables, made[-1].runs / "mlflow.db")
        return made[-1]

    yield make
    for home in made:
        home.end_all()


@pytest.fixture(scope="session")
def calm(data: Path, once: Once) -> tuple[Home, Done]:
    """The run that nothing happened to."""

    def make(root: Path) -> dict[str, Any]:
        root.mkdir()
        home = Home.make(root, data)
        try:
            return asdict(home.fathom("train", "job.yaml", "-o", "json"))
        finally:
            home.end_all()

    root, done = once("calm", make)
    return Home(root), Done(**done)
