"""What Ray's controller tells; a stand-in for Ray, which takes seconds to import."""

import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from orchestrator.launch.events import WorkersLost, read
from orchestrator.launch.reporter import FileReporter


class ActorDiedError(Exception):
    """Named as Ray's."""


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    ray = ModuleType("ray.train.v2.api.callback")
    ray.UserCallback = type("UserCallback", (), {})  # type: ignore[attr-defined]
    for name in ("ray", "ray.train", "ray.train.v2", "ray.train.v2.api"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, ray.__name__, ray)
    yield importlib.import_module("orchestrator.launch.losses")
    del sys.modules["orchestrator.launch.losses"]


@pytest.fixture
def reporter(tmp_path: Path) -> FileReporter:
    return FileReporter(tmp_path, "u", 1, "i")


def told(reporter: FileReporter) -> list[str]:
    return [e.message for e in read(events_file(reporter))[0] if isinstance(e, WorkersLost)]


def events_file(reporter: FileReporter) -> Path:
    return reporter.root / "events" / "events.jsonl"


def test_who_died_is_blamed_and_not_who_failed_because_of_it(losses: Any) -> None:  # noqa: ANN401 - a module
    failures = {1: RuntimeError("connection closed\n by peer"), 0: ActorDiedError("The actor died\nunexpectedly")}
    assert losses.describe(failures) == ("rank 0: ActorDiedError: The actor died unexpectedly", [0])
    assert losses.describe({3: RuntimeError("x" * 999)}) == ("rank 3: RuntimeError: " + "x" * 300, [])


def test_a_machine_is_blamed_for_who_died_and_for_its_hardware(losses: Any) -> None:  # noqa: ANN401 - a module
    told = ActorDiedError("x" * 400 + " Expected termination: received SIGTERM")
    ecc = RuntimeError("CUDA error: uncorrectable ECC error encountered")
    blamed = {
        0: ActorDiedError("The actor died"),
        1: told,
        2: RuntimeError("Connection closed by peer [10.244.0.243]:56474"),
    }
    assert losses.describe(blamed)[1] == [0]
    assert losses.describe({1: told, 2: blamed[2]})[1] == []
    assert losses.describe({2: blamed[2], 3: ecc})[1] == [3]


class Wrapped(Exception):
    """As Ray wraps what it finds."""

    def __init__(self, name: str, inner: Exception) -> None:
        super().__init__("A worker health check failed. Worker info: ...")
        setattr(self, name, inner)


def test_what_ray_has_wrapped_is_told(losses: Any) -> None:  # noqa: ANN401 - a module
    died = Wrapped("health_check_failure", ActorDiedError("gone"))
    raised = Wrapped("_base_exc", ValueError("wrong"))
    assert losses.describe({0: raised, 2: died, 1: died})[0] == "rank 1, 2: ActorDiedError: gone"
    assert losses.describe({0: Wrapped("_base_exc", raised)})[0] == "rank 0: ValueError: wrong"


def test_each_loss_is_told_once(losses: Any, reporter: FileReporter) -> None:  # noqa: ANN401 - a module
    now = [0.0]
    callback = losses.TellLosses(reporter, clock=lambda: now[0])
    for seconds in (0, 2, 2, 2, 20, 2):
        now[0] += seconds
        callback.after_exception(None, {1: ActorDiedError("gone")})
    callback.after_exception(None, {0: ActorDiedError("gone")})
    assert told(reporter) == ["rank 1: ActorDiedError: gone"] * 2 + ["rank 0: ActorDiedError: gone"]


def test_after_a_failure_nobody_is_started_again(losses: Any, reporter: FileReporter) -> None:  # noqa: ANN401
    reporter.failed("user-error", "m")
    losses.TellLosses(reporter).after_exception(None, {0: ValueError("m")})
    assert not events_file(reporter).exists()


def test_it_never_raises_because_ray_would_end_the_run(
    losses: Any,  # noqa: ANN401 - a module
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    losses.TellLosses(FileReporter(tmp_path / "file", "u", 1, "i")).after_exception(None, {0: ValueError("m")})
    losses.TellLosses(FileReporter(tmp_path, "u", 1, "i")).after_exception(None, {})
    told = capsys.readouterr().err
    assert told.count("Traceback") == 1
    assert "1 events wait to be written" in told


def test_it_travels_to_the_controller(losses: Any, reporter: FileReporter) -> None:  # noqa: ANN401 - a module
    assert pickle.loads(pickle.dumps(losses.TellLosses(reporter)))._reporter == reporter
