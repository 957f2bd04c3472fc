"""Passwords for the local MLflow page: MLflow's own basic authentication, refused while anybody knows them.

Used by `cli.mlflow`. Newer MLflow ships no password any more; 3.15 and 3.16 still do, and a configuration that
was copied from an older one has it too.
"""

from __future__ import annotations

import configparser
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UsageError

_KNOWN = frozenset({"password1234", "password", "admin", "mlflow", "changeme"})
_SHORTEST = 12
_SECRET = "MLFLOW_FLASK_SERVER_SECRET_KEY"
_PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"


@dataclass(frozen=True)
class Login:
    """People have to log in; `env` is what MLflow reads for it."""

    env: Mapping[str, str]


def read_login(config: Path, env: Mapping[str, str]) -> Login:
    """The login of a basic_auth.ini; UsageError if it would keep nobody out."""
    if importlib.util.find_spec("flask_wtf") is None:
        raise UsageError("--basic-auth needs packages that are not installed: run `pip install 'mlflow[auth]'`")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        text = config.read_text(encoding="utf-8")
        parser.read_string(text)
        section = parser["mlflow"]
    except OSError as error:
        raise UsageError(f"--basic-auth {config} cannot be read: {error.strerror}") from None
    except (configparser.Error, KeyError, UnicodeDecodeError):
        raise UsageError(
            f"--basic-auth {config} is not a configuration of MLflow's basic authentication: "
            "it needs a section [mlflow] with default_permission and database_uri"
        ) from None
    _require_secret_password(env.get(_PASSWORD, section.get("admin_password", "")), section.get("admin_username", ""))
    if len(env.get(_SECRET, "")) < _SHORTEST:
        raise UsageError(
            f"--basic-auth needs a secret in {_SECRET}: "
            "export it as the output of `python -c 'import secrets; print(secrets.token_hex(32))'`"
        )
    return Login({"MLFLOW_AUTH_CONFIG_PATH": str(config.absolute())})


def _require_secret_password(password: str, user: str) -> None:
    if not password:
        raise UsageError(f"no password for the administrator: set {_PASSWORD}, or admin_password in the configuration")
    if password in _KNOWN or password == user:
        raise UsageError(f"the administrator's password is one that everybody knows: set another in {_PASSWORD}")
    if len(password) < _SHORTEST:
        raise UsageError(
            f"the administrator's password has {len(password)} characters, it needs {_SHORTEST}: set {_PASSWORD}"
        )
