from __future__ import annotations

import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.settings import Settings


def test_defaults_are_absolute_and_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.load({})
    assert settings.home == tmp_path / "runs"
    assert settings.tracking_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert settings.price_file is None
    assert settings.signing_key_file == tmp_path / "runs" / "signing.key"
    assert not settings.home.exists()  # reading settings makes nothing


def test_environment(tmp_path: Path) -> None:
    settings = Settings.load(
        {
            "FATHOM_HOME": str(tmp_path),
            "FATHOM_TRACKING_URI": "http://b",
            "FATHOM_PRICES": "~/prices.yaml",
            "FATHOM_HARDWARE": "~/hardware.yaml",
            "FATHOM_EFFICIENCIES": "~/efficiencies.yaml",
            "FATHOM_WEBHOOKS": "~/hooks.yaml",
            "FATHOM_WEBHOOK_HOSTS": " Hooks.example.org, 127.0.0.1:8080,,",
            "FATHOM_SIGNING_KEY_FILE": str(tmp_path / "key"),
        }
    )
    assert settings.home == tmp_path
    assert settings.tracking_uri == "http://b"
    assert settings.price_file == Path.home() / "prices.yaml"
    assert settings.hardware_file == Path.home() / "hardware.yaml"
    assert settings.webhooks_file == Path.home() / "hooks.yaml"
    assert settings.webhook_hosts == ("hooks.example.org", "127.0.0.1:8080")
    assert settings.efficiencies_file == Path.home() / "efficiencies.yaml"
    assert settings.signing_key_file == tmp_path / "key"


def test_mlflows_own_variable_wins_and_empty_means_absent(tmp_path: Path) -> None:
    both = {"MLFLOW_TRACKING_URI": "http://a", "FATHOM_TRACKING_URI": "http://b"}
    assert Settings.load(both).tracking_uri == "http://a"
    empty = Settings.load({"FATHOM_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": "", "FATHOM_PRICES": ""})
    assert empty.tracking_uri.startswith("sqlite:///")
    assert empty.price_file is None
    assert empty.hardware_file is None


def test_the_process_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path))
    assert Settings.load().home == tmp_path


def test_signing_key_is_made_once_and_private(tmp_path: Path) -> None:
    settings = Settings.load({"FATHOM_HOME": str(tmp_path / "deep" / "home")})
    key = settings.signing_key()
    assert len(key) == 32
    assert settings.signing_key() == key
    assert stat.S_IMODE(settings.signing_key_file.stat().st_mode) == 0o600
    assert list(settings.home.iterdir()) == [settings.signing_key_file]


def test_everybody_gets_the_same_key_when_racing(tmp_path: Path) -> None:
    settings = Settings.load({"FATHOM_HOME": str(tmp_path)})
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: settings.signing_key(), range(32)))
    assert len(keys) == 1


def test_two_homes_have_two_keys(tmp_path: Path) -> None:
    keys = [Settings.load({"FATHOM_HOME": str(tmp_path / name)}).signing_key() for name in "ab"]
    assert keys[0] != keys[1]


def test_a_short_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "signing.key").write_bytes(b"short")
    with pytest.raises(UsageError, match=r"holds 5 bytes.*at least 32"):
        Settings.load({"FATHOM_HOME": str(tmp_path)}).signing_key()


def test_cores_that_jobs_may_hold() -> None:
    assert Settings.load({}).cpus is None
    assert Settings.load({"FATHOM_CPUS": " "}).cpus is None
    assert Settings.load({"FATHOM_CPUS": "16"}).cpus == 16


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "1000000"])
def test_no_number_of_cores(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"FATHOM_CPUS is '{text}'")):
        Settings.load({"FATHOM_CPUS": text})
