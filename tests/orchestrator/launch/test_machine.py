"""The load of a machine as the driver reports it; names and numbers are compared with MLflow's own monitors."""

import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow.system_metrics.metrics import gpu_monitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from support.nvml import FakeNvml, NVMLError
from support.runs import resolved

from orchestrator.launch import entry, machine
from orchestrator.launch.base import RunFolder
from orchestrator.launch.ending import Ending
from orchestrator.launch.events import MachineLoad, read
from orchestrator.launch.machine import LOOK_SECONDS, LoadMeter, Part, machine_parts
from orchestrator.launch.reporter import FileReporter


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


@pytest.fixture
def reporter(tmp_path: Path) -> FileReporter:
    return FileReporter(tmp_path, "u", 1, "i")


def loads(reporter: FileReporter) -> list[MachineLoad]:
    found = read(RunFolder(reporter.root).events)[0]
    return [event for event in found if isinstance(event, MachineLoad)]


def fails(error: Exception) -> Part:
    def part() -> dict[str, float]:
        raise error

    return part


def meter(reporter: FileReporter, **parts: Part) -> LoadMeter:
    """That has begun to count."""
    made = LoadMeter(reporter, parts=lambda: parts, node="n1")
    made.look()
    return made


# ------------------------------------------------------------------- what is measured
@pytest.mark.usefixtures("no_gpu")
def test_names_are_mlflows() -> None:
    expected: set[str] = set()
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor):
        monitor = kind()
        monitor.collect_metrics()
        expected |= monitor.aggregate_metrics().keys()
    found = [name for part in machine_parts().values() for name in part()]
    assert sorted(found) == sorted(expected)


@pytest.mark.usefixtures("no_gpu")
def test_numbers_are_mlflows(monkeypatch: pytest.MonkeyPatch) -> None:
    network = types.SimpleNamespace(bytes_recv=5_000_000, bytes_sent=1_000_000)
    monkeypatch.setattr(psutil, "cpu_percent", lambda: 12.5)
    monkeypatch.setattr(psutil, "net_io_counters", lambda: network)
    memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(psutil, "disk_usage", lambda path: {"/": disk}[path])
    theirs, ours = [CPUMonitor(), DiskMonitor(), NetworkMonitor()], machine_parts()
    network = types.SimpleNamespace(bytes_recv=8_500_000, bytes_sent=1_250_000)
    expected: dict[str, float] = {}
    for monitor in theirs:
        monitor.collect_metrics()
        expected |= monitor.aggregate_metrics()
    found = {name: value for part in ours.values() for name, value in part().items()}
    assert found == expected
    assert (found["network_receive_megabytes"], found["network_transmit_megabytes"]) == (3.5, 0.25)


@pytest.mark.usefixtures("no_gpu")
def test_the_first_answer_about_the_processor_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([0.0, 37.5])
    monkeypatch.setattr(psutil, "cpu_percent", lambda: next(answers))
    assert machine_parts()["the processor"]() == {"cpu_utilization_percentage": 37.5}


@pytest.mark.usefixtures("no_gpu")
def test_a_machine_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "net_io_counters", lambda: None)
    assert machine_parts()["the network"]() == {}


def test_gpus_as_mlflow_sees_them(
    monkeypatch: pytest.MonkeyPatch, reporter: FileReporter, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu_monitor, "pynvml", fake, raising=False)
    monkeypatch.setattr(gpu_monitor._logger, "warning", lambda *_: None)
    monitor = gpu_monitor.GPUMonitor()
    monitor.collect_metrics()
    expected = monitor.aggregate_metrics()
    made = LoadMeter(reporter)
    for _ in range(3):
        made.look()
    for load in loads(reporter):
        assert {name: value for name, value in load.metrics.items() if name.startswith("gpu_")} == expected
    assert expected["gpu_0_power_usage_watts"] == 350
    assert "gpu_1_power_usage_watts" not in expected
    assert capsys.readouterr().err.count("the power of GPU 1 failed, told once: NVMLError: Not Supported") == 1


@pytest.mark.parametrize(
    ("visible", "names"),
    [("1", {"gpu_1"}), ("", set()), ("MIG-a,MIG-b", {"gpu_0", "gpu_1"}), (None, {"gpu_0", "gpu_1"})],
)
def test_only_the_jobs_own_gpus_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, names: set[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(2, ("MIG-a", "MIG-b")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    parts = [part for name, part in machine_parts().items() if "memory of GPU" in name]
    assert {name.split("_memory")[0] for part in parts for name in part()} == names


@pytest.mark.parametrize("fault", ["not installed", "no driver"])
def test_without_gpus_nothing_is_said_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    broken = None if fault == "not installed" else FakeNvml()
    monkeypatch.setattr(FakeNvml, "nvmlInit", lambda self: fails(NVMLError("Driver Not Loaded"))())
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    assert not [name for name in machine_parts() if "GPU" in name]
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------- what is reported
def test_the_first_look_only_begins_to_count(reporter: FileReporter) -> None:
    made = meter(reporter, a=lambda: {"cpu_utilization_percentage": 5.0}, b=lambda: {"disk_usage_percentage": 6.0})
    assert loads(reporter) == []
    made.look()
    [load] = loads(reporter)
    assert (load.node, load.attempt, load.incarnation) == ("n1", 1, "i")
    assert load.metrics == {"cpu_utilization_percentage": 5.0, "disk_usage_percentage": 6.0}


def test_this_machine_has_a_name(reporter: FileReporter, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, expected in (("h" * 300, "h" * 253), ("", "localhost")):
        monkeypatch.setattr(machine.platform, "node", lambda name=name: name)
        made = LoadMeter(reporter, parts=lambda: {"a": lambda: {"a": 1.0}})
        made.look()
        made.look()
        assert loads(reporter)[-1].node == expected


def test_a_part_that_fails_is_told_once_and_the_others_go_on(
    reporter: FileReporter, capsys: pytest.CaptureFixture[str]
) -> None:
    made = meter(reporter, bad=fails(PermissionError("/proc/stat")), good=lambda: {"good": 1.0})
    made.look()
    made.look()
    assert [load.metrics for load in loads(reporter)] == [{"good": 1.0}] * 2
    told = "load of this machine: bad failed, told once: PermissionError: /proc/stat\n"
    assert capsys.readouterr() == ("", told)


def test_nothing_measured_is_nothing_reported(reporter: FileReporter) -> None:
    meter(reporter, bad=fails(OSError())).look()
    assert loads(reporter) == []


def test_counting_that_cannot_begin_begins_later(reporter: FileReporter, capsys: pytest.CaptureFixture[str]) -> None:
    tries = iter([fails(OSError("no /proc")), fails(OSError("no /proc")), lambda: {"a": lambda: {"a": 1.0}}])
    made = LoadMeter(reporter, parts=lambda: next(tries)())  # type: ignore[arg-type,return-value]
    for _ in range(4):
        made.look()
    assert len(loads(reporter)) == 1
    assert capsys.readouterr().err.count("no /proc") == 1


def test_an_event_that_cannot_be_written_ends_nothing(
    reporter: FileReporter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = meter(reporter, a=lambda: {"a": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(FileReporter, "machine_load", lambda *_: fails(ValueError("broken"))())
        made.look()
        made.look()
    made.look()
    assert len(loads(reporter)) == 1
    assert capsys.readouterr().err.count("reporting failed, told once: ValueError: broken") == 1


# ------------------------------------------------------------------- when
class Over(Exception):
    """Ends a thread's loop."""


def test_it_looks_every_ten_seconds_however_long_a_look_takes(reporter: FileReporter) -> None:
    now, waits, durations = 0.0, list[float](), iter([0.0, 3.0, 25.0, 0.0])

    def look() -> dict[str, float]:
        nonlocal now
        now += next(durations)
        return {}

    def wait(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        now += seconds
        if len(waits) == 5:
            raise Over

    made = LoadMeter(reporter, parts=lambda: {"slow": look}, clock=lambda: now, wait=wait)
    with pytest.raises(Over):
        made._run()
    assert waits == [LOOK_SECONDS, LOOK_SECONDS, 7.0, 1.0, LOOK_SECONDS]


def test_the_thread_does_not_keep_the_driver_alive(reporter: FileReporter, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, seen = threading.Event(), list[threading.Thread]()

    def wait(_: float) -> None:
        seen.append(threading.current_thread())
        waiting.set()
        raise Over

    monkeypatch.setattr(threading, "excepthook", lambda told: None)
    LoadMeter(reporter, parts=dict, wait=wait).start()
    assert waiting.wait(120)
    seen[0].join(120)
    assert [thread.daemon for thread in seen] == [True]


def test_no_more_threads_is_no_reason_to_end(
    reporter: FileReporter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda self: fails(RuntimeError("can't start new thread"))())
    LoadMeter(reporter).start()
    assert "starting failed" in capsys.readouterr().err


def test_the_driver_starts_it_beside_its_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def starts(name: str) -> Callable[..., types.SimpleNamespace]:
        return lambda *_: types.SimpleNamespace(start=lambda: begun.append(name))

    monkeypatch.setattr(entry, "Guard", starts("guard"))
    monkeypatch.setattr(entry, "LoadMeter", starts("meter"))
    monkeypatch.setattr(entry, "_obey_sigterm", lambda folder: None)
    monkeypatch.setattr(entry, "_train", lambda *_: begun.append("training"))
    folder, plan = RunFolder(tmp_path), resolved()
    entry._attempt(folder, plan, Ending(folder, plan))
    assert begun == ["guard", "meter", "training"]
