"""A job's preset with the sizes that the job changes. Called by the launcher and the planner. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from model.config import ModelConfig
from model.presets import preset
from orchestrator.errors import InvalidJob, Problem
from orchestrator.spec_model import MODEL_FIELDS, Model

FRIENDLY = {theirs: to_camel(ours) for ours, theirs in MODEL_FIELDS.items()}
"""Field of `model.config.ModelConfig` -> field of `spec.model.overrides`."""


def preset_as_overridden(wanted: Model) -> ModelConfig:
    """The architecture of `wanted.preset`; InvalidJob names fields and values."""
    try:
        config = preset(str(wanted.preset))
    except ValueError as error:
        raise InvalidJob([Problem("spec.model.preset", str(error))]) from None
    return replaced(config, wanted.overrides.config_changes())


def replaced(config: ModelConfig, changes: Mapping[str, int | float | None]) -> ModelConfig:
    """`config` with changes by its own field names; InvalidJob speaks of `spec.model.overrides`."""
    try:
        return config.replace(**changes)
    except ValidationError as error:
        raise InvalidJob(
            [_problem(str(detail["loc"][0]) if detail["loc"] else "", detail["msg"]) for detail in error.errors()]
        ) from None


def _problem(name: str, message: str) -> Problem:
    words = re.compile(r"\b(" + "|".join(sorted(FRIENDLY, key=len, reverse=True)) + r")\b")
    text = words.sub(lambda match: FRIENDLY[match[1]], message.removeprefix("Value error, "))
    path = f"spec.model.overrides.{FRIENDLY[name]}" if name in FRIENDLY else "spec.model.overrides"
    return Problem(path, text)
