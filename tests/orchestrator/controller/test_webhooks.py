"""From a changed status to what arrives: a real server, a clock of the test's, and other processes after a crash."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.home import wait_for
from support.receiver import Received, Receiver, receiver
from support.runs import tiny_job

from orchestrator.controller import outbox
from orchestrator.controller.hooks import read_hooks
from orchestrator.controller.webhooks import Notifier
from orchestrator.errors import UsageError
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob
from orchestrator.status import JobStatus

SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()
AT = 1_780_000_000.0


class Clock:
    now = AT

    def __call__(self) -> float:
        return self.now


def job(url: str | None, **notify: list[str]) -> TrainingJob:
    document = tiny_job().document()
    if url is not None:
        document["spec"]["notify"] = {"url": url} | notify
    return TrainingJob.model_validate(document)


def failed(phase: str = "Failed", number: int = 1) -> JobStatus:
    ended = "2026-05-28T20:26:40Z"  # AT
    tried = [
        {"number": n, "startedAt": ended, "endedAt": ended, "outcome": "failed", "reason": "stalled: no step"}
        for n in range(1, number + 1)
    ]
    return JobStatus.model_validate_json(json.dumps({"phase": phase, "attempts": tried, "attemptCount": number}))


def make(tmp_path: Path, *, hosts: str = "127.0.0.1", team: str | None = None) -> tuple[Notifier, list[str], Clock]:
    values = {"FATHOM_HOME": str(tmp_path), "FATHOM_WEBHOOK_HOSTS": hosts}
    if team is not None:
        (tmp_path / "hooks.yaml").write_text(f"- {{team: default, url: '{team}', secret: {SECRET}}}\n")
        values["FATHOM_WEBHOOKS"] = str(tmp_path / "hooks.yaml")
    said, clock = list[str](), Clock()
    return Notifier(Settings.load(values), said.append, clock=clock), said, clock


def ids(there: Receiver) -> list[str]:
    return [one.headers["webhook-id"] for one in there.got]


def test_what_happened_arrives_once(tmp_path: Path) -> None:
    with receiver() as there:
        notifier, said, _ = make(tmp_path)
        one = job(there.url("/x"))
        notifier.tell("u1", one, JobStatus(), failed())
        notifier.deliver()
        notifier.tell("u1", one, None, failed())
        notifier.deliver()
        make(tmp_path)[0].tell("u1", one, None, failed())  # another process, which knows nothing
        make(tmp_path)[0].deliver()
    assert ids(there) == ["u1-1-failed", "u1-1-ended-failed"]
    told = json.loads(there.got[0].body)
    assert (told["id"], told["kind"], told["class"]) == ("u1-1-failed", "failed", "stalled")
    assert there.got[0].headers["content-type"] == "application/json"
    assert "webhook-signature" not in there.got[0].headers
    assert said == []


def test_only_what_was_asked_for(tmp_path: Path) -> None:
    with receiver() as there:
        notifier, _, _ = make(tmp_path)
        notifier.tell("u1", job(there.url(), when=["ended"]), None, failed())
        notifier.tell("u2", job(None), None, failed())
        notifier.deliver()
    assert ids(there) == ["u1-1-ended-failed"]
    assert not outbox.outbox(tmp_path, "u2").exists()


def test_a_team_hears_of_all_its_jobs_and_can_check_who_speaks(tmp_path: Path) -> None:
    with receiver() as team, receiver() as own:
        notifier, _, clock = make(tmp_path, team=team.url())
        notifier.tell("u1", job(own.url(), when=["ended"]), None, failed())
        notifier.deliver()
    assert ids(team) == ["u1-1-failed", "u1-1-ended-failed"]
    assert ids(own) == ["u1-1-ended-failed"]
    for got in (*team.got, *own.got):
        signed = f"{got.headers['webhook-id']}.{int(clock.now)}.".encode() + got.body
        expected = base64.b64encode(hmac.new(b"k" * 24, signed, hashlib.sha256).digest()).decode()
        assert got.headers["webhook-timestamp"] == str(int(clock.now))
        assert got.headers["webhook-signature"] == f"v1,{expected}"


def test_it_is_tried_again_with_longer_pauses_and_by_the_next_process(tmp_path: Path) -> None:
    with receiver() as there:
        there.answer = lambda _: 503
        notifier, said, clock = make(tmp_path)
        notifier.tell("u1", job(there.url(), when=["ended"]), None, failed())
        times = []
        for second in range(0, 400, 5):
            clock.now = AT + second
            before = len(there.got)
            notifier.deliver()
            times += [second] * (len(there.got) - before)
        assert times == [0, 10, 30, 70, 150, 310]
        assert said == ["webhook of the job: 127.0.0.1 answered 503; it is tried again for a day"]
        there.answer = lambda _: 200
        later, _, clock = make(tmp_path)
        clock.now = AT + 320
        later.deliver()
        assert len(there.got) == 6
        clock.now = AT + 3600
        later.deliver()
        later.deliver()
    assert ids(there) == ["u1-1-ended-failed"] * 7


def test_after_a_day_it_is_given_up(tmp_path: Path) -> None:
    with receiver() as there:
        there.answer = lambda _: 500
        notifier, said, clock = make(tmp_path)
        notifier.tell("u1", job(there.url(), when=["ended"]), None, failed())
        for hour in range(30):
            clock.now = AT + hour * 3600
            notifier.deliver()
        assert len(there.got) == 26
        assert said[-1].endswith("note u1-1-ended-failed was not delivered for a day: 127.0.0.1 answered 500")
        notifier.tell("u1", job(there.url(), when=["ended"]), None, failed())
        notifier.deliver()
        assert len(there.got) == 26
        clock.now = AT + 49 * 3600
        notifier.tell("u1", job(there.url(), when=["ended"]), None, failed())
        notifier.deliver()
    assert len(there.got) == 26, "too old"


def test_a_clock_that_is_set_back_does_not_stop_it(tmp_path: Path) -> None:
    with receiver() as there:
        there.answer = lambda _: 500
        notifier, _, clock = make(tmp_path)
        notifier.tell("u1", job(there.url(), when=["ended"]), None, failed())
        notifier.deliver()
        clock.now = AT - 7200
        notifier.deliver()
    assert len(there.got) == 2


def test_a_dead_address_holds_up_only_its_own_notes_and_keeps_their_order(tmp_path: Path) -> None:
    with receiver() as dead, receiver() as there:
        dead.answer = lambda _: 500
        notifier, _, clock = make(tmp_path)
        notifier.tell("u1", job(dead.url()), None, failed(number=2))
        notifier.tell("u2", job(there.url()), None, failed())
        notifier.deliver()
        assert ids(dead) == ["u1-1-failed"]
        assert ids(there) == ["u2-1-failed", "u2-1-ended-failed"]
        dead.answer = lambda _: 200
        clock.now = AT + 60
        notifier.deliver()
    assert ids(dead) == ["u1-1-failed", "u1-1-failed", "u1-2-failed", "u1-2-ended-failed"]


def test_a_job_cannot_reach_this_machine_but_the_operators_own_address_may_be_here(tmp_path: Path) -> None:
    with receiver() as there:
        notifier, said, _ = make(tmp_path, hosts="", team=there.url())
        notifier.tell("u1", job(there.url("/internal").replace("http:", "https:"), when=["ended"]), None, failed())
        notifier.deliver()
    assert {one.path for one in there.got} == {"/hook"}
    assert "127.0.0.1 is at 127.0.0.1, which is no public address" in said[0]


def test_the_controller_does_not_wait(tmp_path: Path) -> None:
    """Not even for a server that does not answer; and the end of the process does not either."""
    held, asked = threading.Event(), threading.Event()

    def answer(_: Received) -> int:
        asked.set()
        held.wait(300)
        return 200

    with receiver() as there:
        there.answer = answer
        notifier, _, _ = make(tmp_path)
        notifier.start()
        notifier.tell("u1", job(there.url()), None, failed())
        assert asked.wait(120)
        done = threading.Event()
        teller = threading.Thread(target=lambda: (notifier.tell("u2", job(there.url()), None, failed()), done.set()))
        teller.start()
        assert done.wait(120), "tell waited for the post"
        teller.join()
        notifier.close(patience=0.1)
        held.set()
        wait_for(lambda: True if len(there.got) >= 1 else None)
    left = {one.id: one.done for one in outbox.read(outbox.outbox(tmp_path, "u2"))}
    assert left == {"u2-1-failed": None, "u2-1-ended-failed": None}


def test_the_thread_delivers(tmp_path: Path) -> None:
    with receiver() as there:
        notifier, _, _ = make(tmp_path)
        notifier.start()
        notifier.tell("u1", job(there.url()), None, failed())
        wait_for(lambda: True if len(there.got) == 2 else None)
        notifier.close()


@pytest.mark.parametrize("break_it", [lambda p: p.write_text("{"), lambda p: p.mkdir()])
def test_what_is_damaged_is_no_trouble_of_the_controller(tmp_path: Path, break_it: Callable[[Path], object]) -> None:
    with receiver() as there:
        notifier, said, _ = make(tmp_path)
        path = outbox.outbox(tmp_path, "u1")
        path.parent.mkdir()
        break_it(path)
        notifier.tell("u1", job(there.url()), None, failed())
    assert all("webhook of default/tiny: nothing is sent" in one for one in said)
    assert (len(said) == 1) == path.is_dir()


def test_what_is_kept_is_for_the_owner_only_and_goes_when_it_is_old(tmp_path: Path) -> None:
    with receiver() as there:
        notifier, _, clock = make(tmp_path)
        notifier.tell("u1", job(there.url()), None, failed())
        path = outbox.outbox(tmp_path, "u1")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        notifier.deliver()
        assert path.exists()
        clock.now = AT + 49 * 3600
        make_again = Notifier(Settings.load({"FATHOM_HOME": str(tmp_path)}), print, clock=clock)
        make_again.deliver()
        assert not path.exists()


def test_webhooks_of_teams_that_are_wrong_are_named_without_their_secrets(tmp_path: Path) -> None:
    path = tmp_path / "hooks.yaml"
    rows = [
        ("secret: whsec_c2hvcnQtc2VjcmV0", "row 1: secret: Value error, must hold 24 to 64 bytes, holds 12"),
        ("secret: plain-secret", "row 1: secret: String should match"),
        (f"secret: {SECRET}, when: [failure]", "row 1: when"),
        (f"secret: {SECRET}, oops: 1", "row 1: oops"),
    ]
    for text, says in rows:
        path.write_text(f"- {{team: a, url: 'https://x.test/hidden', {text}}}\n")
        with pytest.raises(UsageError) as refused:
            read_hooks(path)
        assert says in str(refused.value)
        for secret in ("hidden", "c2hvcnQ", "plain-secret", SECRET):
            assert secret not in str(refused.value)
    path.write_text(f"- {{team: a, url: 'https://x.test/', secret: {SECRET}}}\n" * 2)
    with pytest.raises(UsageError, match="row 2: a second webhook for a"):
        read_hooks(path)


def test_a_file_of_webhooks_that_breaks_leaves_those_of_before(tmp_path: Path) -> None:
    with receiver() as there:
        notifier, said, _ = make(tmp_path, team=there.url())
        notifier.tell("u1", job(None), None, failed())
        (tmp_path / "hooks.yaml").write_text("nonsense")
        notifier.tell("u2", job(None), None, failed())
        notifier.deliver()
    assert len(there.got) == 4
    assert said == [
        f"webhooks {tmp_path}/hooks.yaml: must be a list of rows, got str; the webhooks of before stay in force"
    ]
