"""Takes secrets out of texts that leave the house. Pure, but for `Secrets.of`, which reads what is secret here.

Two nets: what is known to be secret on this machine goes wherever it stands and in whatever form; and what looks like a
secret goes, too, whosever it is. Invariant: better a word too many is taken out than one too few.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, quote_plus

from orchestrator.settings import Settings

GONE = "[removed]"
_SHORTEST = 6
"""Characters of a known secret below which it would take ordinary words away with it."""
_SECRET_NAME = re.compile(
    r"secret|token|passw|passphrase|credential|api_?key|access_?key|private|signature|auth|cookie|session|dsn|whsec"
    r"|(?:^|_)(?:key|pwd|pass|pat|sas)(?:$|_)|connection_?string",
    re.IGNORECASE,
)
_HARMLESS = re.compile(r"^(SSH_AUTH_SOCK|XAUTHORITY|XDG_SESSION.*|DESKTOP_SESSION|.*_(FILE|PATH|DIR)|TOKENIZERS_.*)$")
"""Names that look so, of values that are paths or switches."""
_FIELD = (
    r"(?:secret(?:[_-]?(?:access[_-]?)?key|[_-]?value)?|(?<!per_)(?<!per)token"
    r"|passw(?:or)?d|passphrase|pwd|credentials?|api[_-]?key|access[_-]?key(?:[_-]?id)?|account[_-]?key"
    r"|private[_-]?key|signing[_-]?key|encryption[_-]?key|(?<![a-z])auth|cookie|signature|(?<![a-z])sig)\\?[\"']?\s*[:=]\s*"
)
"""A name that a secret is given under, up to where that begins."""
_KEY_END = r"-----END [A-Z0-9 ]*PRIVATE KEY-----"
_BEFORE_HOST = r"(?:[^\s/\"'<>]{1,512}|[^\s/:@\"'<>]{1,128}:[^\s\"'<>]{1,512})"
"""A password may hold slashes where whoever wrote it forgot to quote them."""
_ANY = r"[^\s\"'<>]"
_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL if ".*?" in pattern else re.IGNORECASE), instead)
    for pattern, instead in (
        (rf"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:{_KEY_END}|\Z)", GONE),
        (rf"\A[A-Z0-9+/=\s\\]*{_KEY_END}", GONE),  # the first lines were cut off
        (rf"\b(https?://){_BEFORE_HOST}@", rf"\1{GONE}@"),
        (rf"\b(?!https?:)([a-z][a-z0-9+.-]{{0,30}}://){_ANY}{{1,512}}@", rf"\1{GONE}@"),
        (r"\b((?:proxy-)?authorization|(?:set-)?cookie)(\\?[\"']?\s*[:=]\s*\\?[\"']?)[^\r\n\"'\\]+", rf"\1\2{GONE}"),
        (r"\b(bearer|basic)\s+[a-z0-9._~+/=-]{6,}", rf"\1 {GONE}"),
        (rf"({_FIELD})(\\?[\"'])(?:(?!\2)[^\r\n])*\2", rf"\1\2{GONE}\2"),
        (rf"({_FIELD})(?![\"'\\\[{{]|null\b|none\b|true\b|false\b)[^\s,;&\"'}}\])]+", rf"\1{GONE}"),
        (r"(--[a-z0-9-]{0,40}(?:token|password|secret|key)[ =])\S+", rf"\1{GONE}"),
        (r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", GONE),
        (r"\b(?:gh[pousr]_[a-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|hf_[a-z0-9]{20,})", GONE),
        (r"\b(?:sk|rk|pk)[-_](?:[a-z]{1,20}[-_]){0,3}[a-z0-9]{20,}|\bxox[a-z]-[\w-]{10,}|\bwhsec_[a-z0-9+/=]+", GONE),
        (r"\beyJ[a-z0-9_-]{8,}\.[a-z0-9_-]{8,}\.[a-z0-9_-]*", GONE),
        (r"\bAIza[0-9a-z_-]{30,}|\bya29\.[0-9a-z_-]{20,}", GONE),
        (rf"(https://hooks\.slack\.com/|https://(?:\w+\.)?discord(?:app)?\.com/api/webhooks/){_ANY}+", rf"\1{GONE}"),
    )
)


@dataclass(frozen=True)
class Secrets:
    """What is secret here."""

    known: tuple[str, ...] = ()
    """In all forms in which they might be written, the longest first."""

    @classmethod
    def among(cls, texts: Iterable[str]) -> Secrets:
        """Those that are long enough to be one."""
        forms = {form for text in texts for form in _forms(text.strip()) if len(form) >= _SHORTEST}
        return cls(tuple(sorted(forms, key=lambda form: (-len(form), form))))

    @classmethod
    def of(cls, settings: Settings, env: Mapping[str, str], urls: Iterable[str] = ()) -> Secrets:
        """Keys and tokens of this home, values of the environment that look secret by their name, and what stands in
        `urls` behind the host: addresses of webhooks are secrets."""
        found = [value for name, value in env.items() if is_secret_name(name)]
        for file in (settings.signing_key_file, settings.home / "admin.token", _path(env.get("FATHOM_TOKEN_FILE"))):
            found += _of_file(file)
        found += _of_webhooks(settings.webhooks_file)
        found += [tail for url in urls if len(tail := url.partition("://")[2].partition("/")[2]) >= _SHORTEST]
        for value in env.values():
            found += re.findall(r"://[^/\s:@]*:([^/\s]+)@", value)
        return cls.among(found)

    def without(self, text: str) -> tuple[str, int]:
        """The text without secrets, and how many were taken out."""
        count = 0
        for secret in self.known:
            count += text.count(secret)
            text = text.replace(secret, GONE)
        for pattern, instead in _PATTERNS:
            text, changed = pattern.subn(instead, text)
            count += changed
        return text, count


def is_secret_name(name: str) -> bool:
    """Whether a variable of the environment holds a secret, by its name."""
    return _SECRET_NAME.search(name) is not None and _HARMLESS.match(name) is None


def _forms(secret: str) -> set[str]:
    """As it is, and as JSON, URLs and base64 write it."""
    if not secret:
        return set()
    raw = secret.encode("utf-8", "surrogateescape")
    written = json.dumps(secret)[1:-1]
    return {
        secret,
        written,
        json.dumps(written)[1:-1],
        quote(raw, safe=""),
        quote_plus(raw),
        repr(secret)[1:-1],
    } | _encoded(raw)


def _encoded(raw: bytes) -> set[str]:
    plain, url = base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()
    return {plain, url, plain.rstrip("="), url.rstrip("="), raw.hex(), raw.hex().upper()}


def _of_file(file: Path | None) -> list[str]:
    """Text, or bytes that nobody would write but encoded."""
    try:
        data = b"" if file is None else file.read_bytes()[:4096]
    except OSError:
        return []
    found = list(_encoded(data)) if data else []
    try:
        return [*found, data.decode()]
    except UnicodeDecodeError:
        return [*found, repr(data)[2:-1]]


def _of_webhooks(file: Path | None) -> list[str]:
    """Also of one with a mistake in it, which is why it is not read as what it should be."""
    try:
        text = "" if file is None else file.read_text()
    except (OSError, UnicodeDecodeError):
        return []
    secrets = re.findall(r"secret[\"']?\s*:\s*[\"']?([^\s\"',}]+)", text)
    return [*secrets, *(url.partition("/")[2] for url in re.findall(r"https?://([^\s\"',}]+)", text))]


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser() if text else None
