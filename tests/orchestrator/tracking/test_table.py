"""The numbers of a run as one table: which steps count, what stands in a row, and what the files say."""

import csv
import io
import json
import math
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs import RATE, event

from orchestrator.cost.meter import Spent, spent
from orchestrator.launch.events import Event
from orchestrator.tracking.table import FIXED, About, Table, as_csv, as_json, as_parquet, build, evaluated, surviving

ABOUT = About("tiny", "u", RATE)


def started(time: float, step: int = 0, attempt: int = 1) -> Event:
    return event("started", time, attempt=attempt, step=step, tokens=0, world_size=2)


def done(time: float, step: int, attempt: int = 1, **metrics: float) -> Event:
    return event("progress", time, attempt=attempt, step=step, tokens=64 * step, metrics=metrics)


def judged(time: float, step: int, attempt: int = 1, **metrics: float) -> Event:
    return event("evaluated", time, attempt=attempt, step=step, tokens=64 * step, metrics=metrics)


def spent_at(time: float) -> Spent:
    """The devices are held from second 0 on, for a dollar a second."""
    return spent(Decimal(str(max(0.0, time))), RATE)


def table(*events: Event) -> Table:
    return build(events, spent_at, ABOUT)


RUN = table(
    started(1.0),
    done(2.0, 1, **{"train/loss": 5.0}),
    done(3.0, 2, **{"train/loss": 4.0}),
    done(4.5, 2, **{"eval/loss": 4.25}),
    event("machine-load", 5.0, node="n", metrics={"cpu_utilization_percentage": 50.0}),
    event("ended", 6.0, outcome="succeeded"),
    judged(1e6, 2, **{"eval/arc/acc": 0.25}),
)


# ------------------------------------------------------------------- rows
def test_each_step_is_a_row_with_its_time_and_money() -> None:
    assert RUN.columns == (*FIXED, "train/loss", "eval/loss", "eval/arc/acc")
    first, second = RUN.rows
    fixed = {"step": 1, "time": 2.0, "attempt": 1, "tokens": 64, "hours": 2 / 3600, "cost": 2.0}
    assert first == fixed | {"train/loss": 5.0}
    assert [second[name] for name in ("time", "cost")] == [4.5, 4.5], "not when it was evaluated"
    assert [second[name] for name in RUN.metrics] == [4.0, 4.25, 0.25]


def test_what_a_restart_went_back_behind_does_not_count_until_it_is_done_again() -> None:
    story = [started(0.0), *(done(step, step, **{"train/loss": 9.0}) for step in range(1, 6)), started(9.0, 2)]
    assert [e.step for e in surviving(story)] == [1, 2]
    story += [started(10.0, 2, attempt=2), done(11.0, 3, attempt=2, **{"train/loss": 7.0})]
    assert [(e.step, e.attempt, e.time) for e in surviving(story)] == [(1, 1, 1.0), (2, 1, 2.0), (3, 2, 11.0)]
    assert surviving([*story, started(12.0, 0, attempt=3)]) == []


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=30))
def test_rows_are_those_of_the_last_way_to_each_step(drawn: list[tuple[bool, int]]) -> None:
    story, way = [started(0.0)], [0]
    for time, (restarts, back) in enumerate(drawn, 1):
        if restarts:
            step = way[max(0, len(way) - 1 - back)]
            way = way[: way.index(step) + 1]
            story.append(started(time, step))
        else:
            way.append(way[-1] + 1)
            story.append(done(time, way[-1]))
    rows = table(*story).rows
    assert [row["step"] for row in rows] == way[1:]
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)


def test_evaluations_join_the_row_of_their_step_and_the_first_stays() -> None:
    story = [started(0.0), done(1.0, 1, **{"eval/loss": 3.0}), done(2.0, 2)]
    story += [judged(8.0, 1, **{"eval/loss": 2.0, "eval/a": 1.0}), judged(9.0, 1, **{"eval/a": 2.0})]
    first, second = table(*story).rows
    assert (first["eval/loss"], first["eval/a"]) == (3.0, 1.0)
    assert not second.keys() - set(FIXED)


def test_an_evaluation_of_a_state_that_is_lost_makes_no_row_and_joins_no_other() -> None:
    story = [started(0.0), done(1.0, 1), done(2.0, 2), judged(3.0, 2, **{"eval/a": 1.0}), judged(3.5, 1, **{"b": 1.0})]
    story += [started(4.0, 1), done(5.0, 2)]
    assert evaluated(story) == {1: {"b": 1.0}}, "what came after step 1 was done again, perhaps with other data"
    again = table(*story, judged(9.0, 2, **{"eval/a": 5.0}), judged(9.0, 7, **{"eval/a": 6.0}))
    assert [(row["step"], row.get("eval/a")) for row in again.rows] == [(1, None), (2, 5.0)]


def test_a_metric_cannot_pass_for_a_column_of_its_own() -> None:
    found = table(done(1.0, 1, cost=99.0, loss=1.0))
    assert found.rows[0]["cost"] == 1.0
    assert found.columns == (*FIXED, "loss")


# ------------------------------------------------------------------- a choice of metrics
def test_a_choice_has_the_steps_that_measured_it() -> None:
    chosen = RUN.only(["eval/loss", "eval/loss"])
    assert chosen.columns == (*FIXED, "eval/loss")
    assert [row["step"] for row in chosen.rows] == [2]
    assert "train/loss" not in chosen.rows[0]
    both = RUN.only(["eval/loss", "train/loss"])
    assert (both.metrics, len(both.rows)) == (("eval/loss", "train/loss"), 2), "in the order that was asked for"


def test_fixed_columns_may_be_named_and_others_must_exist() -> None:
    assert RUN.only(["cost"]).columns == FIXED
    assert len(RUN.only(["cost"]).rows) == 2
    with pytest.raises(KeyError, match="train/los"):
        RUN.only(["train/loss", "train/los"])


# ------------------------------------------------------------------- files
def test_csv() -> None:
    assert as_csv(RUN).decode().splitlines() == [
        "step,time,attempt,tokens,hours,cost,train/loss,eval/loss,eval/arc/acc",
        f"1,1970-01-01T00:00:02.000000+00:00,1,64,{2 / 3600},2.0,5.0,,",
        f"2,1970-01-01T00:00:04.500000+00:00,1,128,{4.5 / 3600},4.5,4.0,4.25,0.25",
    ]
    assert as_csv(table()).decode() == ",".join(FIXED) + "\n"


def test_json() -> None:
    content = json.loads(as_json(RUN))
    assert {k: v for k, v in content.items() if k not in ("rows", "columns")} == {
        "job": "tiny",
        "uid": "u",
        "currency": "USD",
        "price_source": "a list (2026-06-01)",
    }
    assert content["columns"] == list(RUN.columns)
    assert content["rows"][0]["time"] == "1970-01-01T00:00:02.000000+00:00"
    assert [row["step"] for row in content["rows"]] == [1, 2]
    assert "eval/loss" not in content["rows"][0]


def parquet(found: Table) -> Any:  # noqa: ANN401 - pyarrow has no types
    return pq.read_table(io.BytesIO(as_parquet(found)))


@pytest.mark.parametrize("found", [RUN, table()], ids=["run", "empty"])
def test_parquet_has_types_and_says_whose_numbers_it_holds(found: Table) -> None:
    read = parquet(found)
    types = dict(zip(read.schema.names, read.schema.types, strict=True))
    assert [types.pop(name) for name in ("step", "attempt", "tokens")] == [pa.int64()] * 3
    assert types.pop("time") == pa.timestamp("us", tz="UTC")
    assert set(types.values()) == {pa.float64()}
    assert read.schema.metadata == {
        b"fathom.job": b"tiny",
        b"fathom.uid": b"u",
        b"fathom.currency": b"USD",
        b"fathom.price_source": b"a list (2026-06-01)",
    }


def test_parquet_and_csv_hold_the_same() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(RUN).decode())))
    read = parquet(RUN).to_pylist()
    assert [row.pop("time").isoformat(timespec="microseconds") for row in read] == [row.pop("time") for row in rows]
    assert read == [{name: float(value) if value else None for name, value in row.items()} for row in rows]


def test_a_run_without_an_attempt_has_no_currency() -> None:
    assert About("tiny", "u", None).as_text() == {"job": "tiny", "uid": "u"}


def test_a_worker_with_a_mad_clock_does_no_harm() -> None:
    mad = table(done(1e300, 1))
    assert math.isfinite(mad.rows[0]["time"])
    assert b"5138-" in as_csv(mad)
    assert parquet(mad).num_rows == 1
