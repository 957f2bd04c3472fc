"""A run with failures, played out event by event; `plan.goodput` has the same model as formulas."""

from orchestrator.plan.simulate.run import (
    CLASSES,
    Incident,
    Run,
    Scenario,
    Stretch,
    TimeClass,
    refuse_too_many,
    simulate,
)

__all__ = ["CLASSES", "Incident", "Run", "Scenario", "Stretch", "TimeClass", "refuse_too_many", "simulate"]
