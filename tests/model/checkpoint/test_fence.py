"""Who may write and whose checkpoints count: claims, late writers, and any order in which they can happen."""

import json
import threading
import uuid
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import KEY, claimed, identity, manifest_for, newest_step, save, upload

from model.checkpoint import CheckpointError, Fenced, Store
from model.checkpoint.storage import LocalStorage


def unchecked(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A writer that had passed its check just before it was stopped."""
    monkeypatch.setattr(store, "check_fence", lambda: None)
    return store


# ------------------------------------------------------------------- claims
def test_each_claim_is_an_epoch_of_its_own(root: Path) -> None:
    first = Store(str(root), identity(), KEY)
    assert first.claim() == 1
    save(first, 5)
    again = Store(str(root), identity(), KEY)
    assert again.claim() == 2, "also by the same attempt and incarnation: its workers were started again"
    assert (first.tag, again.tag) == ("1-a-1", "1-a-2")
    fence = root / "checkpoints/fence"
    assert sorted(p.name for p in fence.iterdir()) == [
        "00000001-accepted.json",
        "00000001.json",
        "00000002-accepted.json",
        "00000002.json",
    ]
    assert json.loads((fence / "00000001-accepted.json").read_text()) == []
    assert json.loads((fence / "00000002-accepted.json").read_text()) == [[5, 1]]
    body = json.loads((fence / "00000002.json").read_text())
    assert (body["identity"], body["epoch"]) == (identity().model_dump(), 2)
    assert KEY.decode() not in str(body)


def test_other_ranks_join(root: Path) -> None:
    first = claimed(root)
    rank = Store(str(root), identity(), KEY)
    with pytest.raises(Fenced, match="has not claimed"):
        _ = rank.tag
    with pytest.raises(Fenced, match="has not claimed"):
        rank.check_fence()
    rank.join(first.epoch)
    rank.check_fence()
    files = upload(rank, 5)
    first.publish(manifest_for(first, 5, files))
    assert newest_step(rank) == 5


def test_a_replaced_writer_is_fenced(root: Path) -> None:
    store = claimed(root)
    save(store, 10)
    files = upload(store, 15)
    store.check_fence()
    newer = claimed(root, 2, "b")
    with pytest.raises(
        Fenced, match=r"epoch 2 \(attempt 2, incarnation b\) has begun, this is epoch 1 \(attempt 1, incarnation a\)"
    ):
        store.publish(manifest_for(store, 15, files))
    found, problems = newer.newest()
    assert found is not None
    assert found.manifest.step == 10
    assert problems == ["step-15: unfinished: it has no manifest"]
    with pytest.raises(Fenced, match="attempt 2 has begun, this is attempt 1"):
        Store(str(root), identity(1, "c"), KEY).claim()
    newer.check_fence()


def test_a_restart_of_the_same_attempt_fences_the_one_before(root: Path) -> None:
    store = claimed(root)
    files = upload(store, 15)
    claimed(root)
    with pytest.raises(Fenced, match="epoch 2"):
        store.publish(manifest_for(store, 15, files))


def test_the_storage_of_another_job_is_refused(root: Path) -> None:
    store = claimed(root)
    for attempt in (1, 2):
        with pytest.raises(CheckpointError, match="another job \\(job-1, this one is job-2\\)"):
            Store(str(root), identity(attempt, job="job-2"), KEY).claim()
    store.check_fence()  # still ours


def test_another_signing_key_is_refused_before_it_can_do_harm(root: Path) -> None:
    """Accepting none of its checkpoints would replace them all."""
    store = claimed(root)
    save(store, 5)
    with pytest.raises(CheckpointError, match="FATHOM_SIGNING_KEY_FILE"):
        Store(str(root), identity(2), b"x" * 32).claim()
    assert newest_step(claimed(root, 2)) == 5


def test_a_claim_that_vanished_ends_the_writer(root: Path) -> None:
    store = claimed(root)
    for path in (root / "checkpoints/fence").iterdir():
        path.unlink()
    with pytest.raises(Fenced, match="vanished"):
        store.check_fence()


def test_one_of_two_claims_at_once_gets_the_number(root: Path) -> None:
    for _ in range(20):
        barrier, stores = threading.Barrier(4), [Store(str(root), identity(), KEY) for _ in range(4)]
        epochs: list[int] = []

        def work(store: Store) -> None:
            barrier.wait()  # noqa: B023 - joined before the next round
            epochs.append(store._fences.take(1.0))  # noqa: B023

        threads = [threading.Thread(target=work, args=(store,)) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(epochs)) == 4
    assert sorted(p.name for p in (root / "checkpoints/fence").iterdir()) == [f"{n:08d}.json" for n in range(1, 81)]


def test_losing_every_race_ends_in_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise FileExistsError

    monkeypatch.setattr(LocalStorage, "create", lost)
    with pytest.raises(OSError, match="claimed it first, 100 times"):
        Store(str(root), identity(), KEY).claim()


def test_a_claim_overtaken_while_it_looked_around_is_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(root), identity(), KEY)
    before = store._published

    def overtaken() -> list[tuple[int, int]]:
        claimed(root, 2)
        return before()

    monkeypatch.setattr(store, "_published", overtaken)
    with pytest.raises(Fenced, match="epoch 2"):
        store.claim()
    with pytest.raises(Fenced, match="has not claimed"):
        store.check_fence()


# ------------------------------------------------------------------- late publications
def test_a_late_publication_does_not_count(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zombie = unchecked(claimed(root), monkeypatch)
    save(zombie, 5)
    newer = claimed(root, 2, "b")
    save(zombie, 10)
    words = "step-10: a replaced writer published it: it is of epoch 1 and was not there when epoch 2 began"
    for reader in (newer, zombie, Store(str(root), identity(3), KEY), claimed(root, 3)):
        found, problems = reader.newest()
        assert found is not None
        assert found.manifest.step == 5
        assert problems[0].startswith(words) or problems[0].startswith(words.replace("epoch 2", "epoch 3"))


def test_it_does_not_count_for_retention_either(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zombie = unchecked(claimed(root), monkeypatch)
    save(zombie, 5)
    newer = claimed(root, 2, "b")
    save(zombie, 10)
    newer.prune(1, 10)
    assert newer.steps() == [5, 10]
    save(newer, 15)
    newer.prune(1, 15)
    assert newer.steps() == [15]


def test_a_late_writer_does_not_replace_a_newer_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zombie = unchecked(claimed(root), monkeypatch)
    newer = claimed(root, 1, "b")
    save(newer, 10)
    with pytest.raises(Fenced, match="step 10 was published by epoch 2, this is epoch 1"):
        save(zombie, 10)
    assert newer.verify(10).epoch == 2
    newer.sweep()
    assert sorted(p.name for p in (root / "checkpoints/step-10").iterdir()) == ["1-b-2", "manifest.json"]


def test_a_newer_writer_replaces_a_late_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zombie = unchecked(claimed(root), monkeypatch)
    newer = claimed(root, 2, "b")
    save(zombie, 10)
    save(newer, 10)
    assert newest_step(newer) == 10
    assert newer.verify(10).epoch == 2


def test_what_was_published_while_the_newer_one_looked_counts_if_it_was_seen(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zombie = unchecked(claimed(root), monkeypatch)
    newer = Store(str(root), identity(2, "b"), KEY)
    before = newer._published

    def look() -> list[tuple[int, int]]:
        save(zombie, 5)
        seen = before()
        save(zombie, 10)
        return seen

    monkeypatch.setattr(newer, "_published", look)
    newer.claim()
    assert newest_step(newer) == 5


def test_a_step_that_was_accepted_is_not_a_place_for_late_writers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was accepted is one writer's checkpoint of a step, not whatever lies there later."""
    save(claimed(root), 10)
    zombie = unchecked(claimed(root), monkeypatch)
    newer = claimed(root, 2, "b")
    assert newest_step(newer) == 10
    save(zombie, 10)
    assert newest_step(newer) is None


# ------------------------------------------------------------------- damage
@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b"[1]", b"5", b"[[1, null]]", b'[["x", 2]]'])
def test_damaged_fences_stop_nobody(root: Path, data: bytes) -> None:
    """The rule before is better than no checkpoint at all."""
    store = claimed(root)
    save(store, 5)
    second = claimed(root, 1, "b")
    (root / "checkpoints/fence/00000002.json").write_bytes(data)
    (root / "checkpoints/fence/00000002-accepted.json").write_bytes(data)
    assert newest_step(second) == 5
    third = Store(str(root), identity(2), KEY)
    assert third.claim() == 3
    assert newest_step(third) == 5
    with pytest.raises(Fenced, match="epoch 3"):
        second.check_fence()


def test_a_claimer_that_died_before_it_noted_anything_changes_no_rule(root: Path) -> None:
    store = claimed(root)
    save(store, 5)
    died = Store(str(root), identity(2), KEY)
    assert died._fences.take(1.0) == 2
    with pytest.raises(Fenced, match="epoch 2"):
        store.check_fence()
    assert newest_step(store) == 5
    assert claimed(root, 2).epoch == 3
    assert newest_step(store) == 5


# ------------------------------------------------------------------- any order
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), st.just(0)),
        st.tuples(st.just("accept"), st.integers(0, 4)),
        st.tuples(st.just("publish"), st.integers(0, 4)),
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(actions=ACTIONS)
def test_in_any_order_what_is_found_was_published_before_a_newer_writer_took_over(
    actions: list[tuple[str, int]],
) -> None:
    """Writers claim in two parts, may stop between any two, and check nothing: as if stopped just after the check.

    Each publishes steps beyond what it found, as training does. A checkpoint must count if and only if at the moment
    of its publication no newer writer had noted what it found.
    """
    uri = f"memory://{uuid.uuid4().hex}/job"
    writers: list[Store] = []
    progress: dict[int, int] = {}
    noted: set[int] = set()
    valid: dict[int, tuple[int, bool]] = {}  # step -> (epoch of its manifest, whether it counts)
    with pytest.MonkeyPatch.context() as patch:
        for action, which in actions:
            if action == "claim":
                store = Store(uri, identity(incarnation=f"i{len(writers)}"), KEY)
                store.join(store._fences.take(1.0))
                patch.setattr(store, "check_fence", lambda: None)
                writers.append(store)
                continue
            if which >= len(writers):
                continue
            store = writers[-1 - which]
            if action == "accept" and store.epoch not in noted:
                store._fences.accept(store.epoch, store._published)
                noted.add(store.epoch)
                progress[store.epoch] = newest_step(store) or 0
            elif action == "publish" and store.epoch in noted:
                progress[store.epoch] += 1
                step = progress[store.epoch]
                if step in valid and valid[step][0] > store.epoch:
                    with pytest.raises(Fenced):
                        save(store, step)
                else:
                    save(store, step)
                    valid[step] = (store.epoch, max(noted) <= store.epoch)
            reader = Store(uri, identity(9), KEY)
            good = {step: epoch for step, (epoch, counts) in valid.items() if counts}
            found, _ = reader.newest()
            assert (found.manifest.step if found else None) == max(good, default=None)
            assert found is None or found.manifest.epoch == good[found.manifest.step]
            assert dict(reader._published()) == good
    if writers:
        fsspec.filesystem("memory").rm(uri.removesuffix("/job"), recursive=True)
