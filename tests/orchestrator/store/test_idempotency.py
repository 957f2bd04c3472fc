from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from support.store import small_job

from orchestrator.errors import IdempotencyInFlight, IdempotencyMismatch
from orchestrator.store.idempotency import Answer, Idempotency, Request
from orchestrator.store.sqlite import SqliteStore

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ONE = Request("k", "ann", "POST /v1/jobs", "digest")
ANSWER = Answer(201, {"ETag": '"x-1"'}, '{"ünï": 1}')


def test_the_same_request_has_the_same_answer(store: SqliteStore) -> None:
    seen = Idempotency(store.database)
    assert seen.claim(ONE) is None
    seen.keep(ONE, ANSWER)
    assert seen.claim(ONE) == ANSWER == Idempotency(store.database).claim(ONE)


def test_another_request_with_the_key_is_refused(store: SqliteStore) -> None:
    seen = Idempotency(store.database)
    seen.claim(ONE)
    with pytest.raises(IdempotencyMismatch, match="'k' came with another request"):
        seen.claim(replace(ONE, digest="other"))


@pytest.mark.parametrize("other", [{"principal": "bob"}, {"route": "POST /v1/plans"}, {"key": "l"}])
def test_others_keys_are_others(store: SqliteStore, other: dict[str, str]) -> None:
    seen = Idempotency(store.database)
    seen.claim(ONE)
    assert seen.claim(replace(ONE, **other)) is None  # type: ignore[arg-type]


def test_while_it_is_worked_on(store: SqliteStore) -> None:
    seen = Idempotency(store.database)
    seen.claim(ONE)
    with pytest.raises(IdempotencyInFlight, match="still being worked on"):
        seen.claim(ONE)
    seen.release(ONE)
    assert seen.claim(ONE) is None, "it failed, so it may be tried"


def test_a_kept_answer_is_not_released_or_cleared(store: SqliteStore) -> None:
    seen = Idempotency(store.database)
    seen.claim(ONE)
    seen.keep(ONE, ANSWER)
    seen.release(ONE)
    seen.clear()
    assert seen.claim(ONE) == ANSWER


def test_claims_of_a_dead_service_are_cleared(store: SqliteStore) -> None:
    Idempotency(store.database).claim(ONE)
    again = Idempotency(store.database)
    again.clear()
    assert again.claim(ONE) is None


def test_answers_are_forgotten_after_a_day(store: SqliteStore) -> None:
    now = NOW
    seen = Idempotency(store.database, clock=lambda: now)
    seen.claim(ONE)
    seen.keep(ONE, ANSWER)
    now = NOW + timedelta(hours=24)
    assert seen.claim(ONE) == ANSWER
    now = NOW + timedelta(hours=24, seconds=1)
    assert seen.claim(ONE) is None


def test_a_claim_that_nobody_released_ends(store: SqliteStore) -> None:
    now = NOW
    seen = Idempotency(store.database, clock=lambda: now)
    seen.claim(ONE)
    now = NOW + timedelta(minutes=5)
    with pytest.raises(IdempotencyInFlight):
        seen.claim(ONE)
    now = NOW + timedelta(minutes=5, seconds=1)
    assert seen.claim(ONE) is None


def test_work_and_answer_are_one(store: SqliteStore) -> None:
    seen = Idempotency(store.database)
    seen.claim(ONE)

    def crash() -> None:
        with store.database.write():
            store.create(small_job(), by="ann")
            seen.keep(ONE, ANSWER)
            assert store.get("default", "mini").name == "mini", "seen from inside"
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    assert store.open_jobs() == ()
    seen.clear()
    assert seen.claim(ONE) is None
