"""Jinja2 as tasks may use it: in a sandbox, and with what lm-eval adds to it."""

from __future__ import annotations

import re
from functools import lru_cache

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    return re.sub(pattern, replacement, text, count=count)


_JINJA = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
_JINJA.filters["regex_replace"] = _regex_replace  # lm-eval has it too


@lru_cache(maxsize=256)
def compiled(template: str) -> Template:
    """A template, parsed once."""
    return _JINJA.from_string(template)


def check_template(name: str, template: str) -> None:
    """ValueError for a template that does not parse."""
    try:
        compiled(template)
    except TemplateError as error:
        raise ValueError(f"{name} is not a Jinja2 template: {error}") from None
