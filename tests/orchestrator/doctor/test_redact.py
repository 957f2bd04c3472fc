from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from orchestrator.doctor.redact import GONE, Secrets, is_secret_name
from orchestrator.settings import Settings

NOTHING = Secrets()


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("connect to https://me:s3cr3t@mlflow.example.org/x", "s3cr3t"),
        ("postgresql+psycopg://fathom:p/a?ss@db.example.org/mlflow", "p/a?ss"),
        ("connect to https://me:s3/cr3t@mlflow.example.org/x", "s3/cr3t"),
        ("GET https://token123@host/", "token123"),
        ('{"token": "abcdef"}', "abcdef"),
        ('{"accessToken": "abc def, x"}', "abc def, x"),
        ("{\\\"password\\\": \\\"abcdef\\\"}", "abcdef"),
        ("password=hunter22 next", "hunter22"),
        ("AWS_SECRET_ACCESS_KEY: wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI/K7MDENG"),
        ("aws_access_key_id = AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("key AKIAIOSFODNN7EXAMPLE alone", "AKIAIOSFODNN7EXAMPLE"),
        ("Authorization: Bearer abc.def-ghi", "abc.def-ghi"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "dXNlcjpwYXNz"),
        ("Cookie: session=abc; csrf=def", "abc; csrf=def"),
        ("sent Bearer abcdefgh to it", "abcdefgh"),
        ("https://bucket.s3/x?X-Amz-Signature=deadbeef01&y=1", "deadbeef01"),
        ("https://x.blob/y?sv=1&sig=a%2Fb%3D", "a%2Fb%3D"),
        ("fathom x --api-token abc123 y", "abc123"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123", "ghp_abcdefghijklmnopqrstuvwxyz0123"),
        ("hf_abcdefghijklmnopqrstuvwxyz", "hf_abcdefghijklmnopqrstuvwxyz"),
        ("sk-proj-abcdefghijklmnopqrstuv", "sk-proj-abcdefghijklmnopqrstuv"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-def", "eyJzdWIiOiIxMjM0In0"),
        ("https://hooks.slack.com/services/T000/B000/XXXX", "T000/B000/XXXX"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEabc\ndef\n-----END RSA PRIVATE KEY-----", "MIIEabc\ndef"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEabc\ndef", "MIIEabc"),
        ("MIIEabc\ndef=\n-----END PRIVATE KEY-----\nafter", "MIIEabc"),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_goes(text: str, secret: str) -> None:
    found, count = NOTHING.without(text)
    assert secret not in found
    assert GONE in found
    assert count >= 1


@pytest.mark.parametrize(
    "text",
    [
        '{"step": 5, "tokens": 1280, "tokensPerSecond": "123.4", "sampleTokens": 256}',
        "tokenizer: data/tokenizer.json",
        "flops_per_token=1.2e9",
        '{"secretRef": "s3-credentials"}',
        "step 10 loss 2.345, 1,234 tokens/s",
        "https://mlflow.example.org/#/experiments/1/runs/abc",
        "s3://bucket/path/to@file",
        "a mail to somebody@example.org",
        '{"token": null, "password": false}',
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "the key points: none",
    ],
)
def test_what_does_not_stays(text: str) -> None:
    expected = "s3://[removed]@file" if text.startswith("s3:") else text  # could be a password with slashes
    assert NOTHING.without(text)[0] == expected


def test_what_is_known_goes_in_every_form() -> None:
    secret = 'pa"ss\\w/ö rd'
    known = Secrets.among([secret, "short", ""])
    raw = secret.encode()
    forms = [secret, json.dumps(secret), json.dumps(json.dumps(secret)), quote(secret, safe=""), raw.hex()]
    forms += [base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode().rstrip("=")]
    for form in forms:
        found, _ = known.without(f"before {form} after")
        assert GONE in found, form
        assert form not in found
    assert known.without("a short word")[0] == "a short word"


def test_keys_tokens_and_the_environment_are_known(tmp_path: Path) -> None:
    (tmp_path / "signing.key").write_bytes(bytes(range(200, 232)))
    (tmp_path / "admin.token").write_text("admin-secret-1\n")
    (tmp_path / "own.token").write_text("own-secret-2\n")
    (tmp_path / "hooks.yaml").write_text("- {team: a, url: 'https://h.test/path-secret-3', secret: broken-secret-4}\n")
    settings = Settings.load({"FATHOM_HOME": str(tmp_path), "FATHOM_WEBHOOKS": str(tmp_path / "hooks.yaml")})
    env = {
        "FATHOM_TOKEN_FILE": str(tmp_path / "own.token"),
        "WANDB_API_KEY": "env-secret-5",
        "MLFLOW_TRACKING_URI": "https://me:url-secret-6@host/",
        "TOKENIZERS_PARALLELISM": "harmless-7",
    }
    known = Secrets.of(settings, env, ["https://h.test/T00/job-secret-8"])
    hidden = ["admin-secret-1", "own-secret-2", "path-secret-3", "broken-secret-4", "env-secret-5", "url-secret-6"]
    hidden += ["T00/job-secret-8", bytes(range(200, 232)).hex(), base64.b64encode(bytes(range(200, 232))).decode()]
    text = known.without(" and ".join([*hidden, "harmless-7"]))[0]
    assert text == " and ".join([GONE] * len(hidden) + ["harmless-7"])


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("FATHOM_TOKEN", True), ("AWS_SECRET_ACCESS_KEY", True), ("MLFLOW_TRACKING_PASSWORD", True), ("HF_TOKEN", True),
        ("OPENAI_API_KEY", True), ("DATABASE_DSN", True), ("DB_PASS", True), ("SSH_KEY", True),
        ("FATHOM_TOKEN_FILE", False), ("FATHOM_SIGNING_KEY_FILE", False), ("TOKENIZERS_PARALLELISM", False),
        ("PATH", False), ("KEYBOARD", False), ("COMPASS", False), ("SSH_AUTH_SOCK", False),
    ],
)  # fmt: skip
def test_variables_that_hold_secrets(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


@pytest.mark.parametrize(
    "unit", ["a-", "token", "://", "secret=", "x@", "-----BEGIN PRIVATE KEY-----", '"token": "', "sk-a-"]
)
def test_no_text_takes_long(unit: str) -> None:
    """A log may be full of anything."""
    began = time.process_time()
    NOTHING.without(unit * (300_000 // len(unit)))
    assert time.process_time() - began < 30
