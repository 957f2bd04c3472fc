from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from support.api import Service, pointers, problem
from support.bad_documents import NEEDS_MORE
from support.store import in_phase

from orchestrator.controller.limit import change_limit
from orchestrator.controller.record import Record
from orchestrator.errors import Conflict
from orchestrator.spec import TrainingJob
from orchestrator.status import Cost, JobStatus, Phase
from orchestrator.store.access import Role
from orchestrator.store.base import StoredJob

ONE = "/v1/jobs/default/mini"


# ------------------------------------------------------------------ submit


def test_a_job_is_submitted(service: Service) -> None:
    answer = service.runner.post("/v1/jobs", json={"job": service.document()})
    assert answer.status_code == 201
    found = answer.json()
    assert answer.headers["location"] == ONE
    assert answer.headers["etag"] == f'"{found["metadata"]["uid"]}-1"'
    assert found["status"] == {
        "observedGeneration": 0, "phase": "Pending", "conditions": [], "attempts": [], "attemptCount": 0,
    }  # fmt: skip
    assert found["metadata"]["createdBy"] == "a-runner"
    assert found["spec"]["compute"] == {"accelerator": "cpu", "workers": 2, "priceClass": "on-demand"}
    assert service.woken
    assert service.reader.get(ONE).json() == found
    assert TrainingJob.model_validate(service.document()).spec == service.store.get("default", "mini").wish.job.spec


def test_all_that_is_wrong_is_said_by_pointer(service: Service) -> None:
    document = service.document(training={"tokens": 0}, compute={"accelerator": "cpu", "workers": "2"}, nonsense=1)
    document["metadata"]["name"] = "Mini"
    found = problem(service.runner.post("/v1/jobs", json={"job": document}), 422, "invalid-job")
    assert pointers(found) == [
        "/metadata/name", "/spec/training/tokens", "/spec/compute/workers", "/spec/nonsense",
    ]  # fmt: skip
    assert found["errors"][1]["detail"] == "must be at least 1, got 0"


def test_data_that_is_not_there_is_said(service: Service) -> None:
    document = service.document(**NEEDS_MORE["a dataset that is not there"])
    found = problem(service.runner.post("/v1/jobs", json={"job": document}), 422, "invalid-job")
    assert pointers(found) == ["/spec/data/source"]
    assert "fathom data prepare" in found["detail"]


def test_several_checks_are_said_at_once(service: Service) -> None:
    document = service.document(
        **NEEDS_MORE["a source that workers cannot read"],
        **NEEDS_MORE["storage of no known kind"],
        **NEEDS_MORE["a price class without a price"],
    )
    found = problem(service.runner.post("/v1/jobs", json={"job": document}), 422, "invalid-job")
    assert pointers(found) == ["/spec/data/source", "/spec/checkpoint/uri", "/spec/compute/priceClass"]


def test_a_budget_that_pays_for_nothing_is_refused(service: Service) -> None:
    document = service.document(**NEEDS_MORE["a budget that pays for nothing"])
    found = problem(service.runner.post("/v1/jobs", json={"job": document}), 402, "over-budget")
    assert "spec.budget.limit is 0.000001 USD" in found["detail"]


def test_a_teams_money_is_asked(service: Service) -> None:
    budgets = service.home / "budgets.yaml"
    budgets.write_text('- {team: default, limit: "1.00", currency: USD}\n')
    other = Service(service.home / "other", FATHOM_BUDGETS=str(budgets))
    refused = other.runner.post("/v1/jobs", json={"job": other.document()})
    assert "has no budget" in problem(refused, 402, "over-budget")["detail"]
    assert other.runner.post("/v1/jobs", json={"job": other.document(budget={"limit": "0.50"})}).status_code == 201


def test_gpus_that_the_machine_does_not_have_are_refused(service: Service) -> None:
    document = service.document(**NEEDS_MORE["GPUs that are not there"])
    found = problem(service.runner.post("/v1/jobs", json={"job": document}), 422, "invalid-job")
    assert pointers(found) == ["/spec/compute/gpus"]


def test_a_bad_file_of_the_operators_is_no_fault_of_the_caller(service: Service) -> None:
    (service.home / "prices.yaml").write_text("nonsense")
    answer = service.runner.post("/v1/jobs", json={"job": service.document()})
    problem(answer, 503, "unavailable")


def test_the_same_name_twice_is_a_conflict(service: Service) -> None:
    service.create()
    again = service.runner.post("/v1/jobs", json={"job": service.document()})
    assert "default/mini exists already (Pending" in problem(again, 409, "conflict")["detail"]


def test_a_dry_run_keeps_nothing(service: Service) -> None:
    answer = service.runner.post("/v1/jobs?dryRun=true", json={"job": service.document()})
    assert answer.status_code == 200
    assert answer.json()["spec"]["data"]["source"] == str(service.data)
    assert service.store.open_jobs() == ()
    refused = service.runner.post("/v1/jobs?dryRun=true", json={"job": service.document(data={"source": "/no"})})
    problem(refused, 422, "invalid-job")
    service.create()
    problem(service.runner.post("/v1/jobs?dryRun=true", json={"job": service.document()}), 409, "conflict")


def test_a_status_cannot_be_submitted(service: Service) -> None:
    answer = service.runner.post("/v1/jobs", json={"job": service.document() | {"status": {"phase": "Succeeded"}}})
    assert pointers(problem(answer, 422, "invalid-job")) == ["/status"]


# ------------------------------------------------------------------ read


def test_what_is_not_there(service: Service) -> None:
    problem(service.reader.get(ONE), 404, "not-found")
    for answer in (
        service.runner.patch(ONE, json={}),
        service.runner.delete(ONE),
        service.runner.post(f"{ONE}:cancel"),
    ):
        problem(answer, 404, "not-found")


@pytest.mark.parametrize(
    "path",
    ["Mini", "mini%0a", "..%2f..%2fetc", "mini:cancel", "m" * 41, "%00", "mini%20", "%ed%a0%80", "é", "mini;x", "*"],
)
def test_names_that_no_job_can_have(service: Service, path: str) -> None:
    service.create()
    assert service.reader.get(f"/v1/jobs/default/{path}").status_code in (404, 422)
    assert service.reader.get(f"/v1/jobs/{path}/mini").status_code in (404, 422)


def test_lists_come_in_pages(service: Service) -> None:
    for number in range(5):
        service.create(f"j{number}")
    first = service.reader.get("/v1/jobs?limit=2&phase=Pending&phase=Running")
    assert [job["metadata"]["name"] for job in first.json()["items"]] == ["j4", "j3"]
    link = first.headers["link"]
    assert link.endswith('; rel="next"')
    second = service.reader.get(link.partition(">")[0][1:])
    assert [job["metadata"]["name"] for job in second.json()["items"]] == ["j2", "j1"]
    last = service.reader.get("/v1/jobs", params={"limit": 2, "cursor": second.json()["next"]})
    assert [job["metadata"]["name"] for job in last.json()["items"]] == ["j0"]
    assert last.json()["next"] == ""
    assert "link" not in last.headers
    assert service.reader.get("/v1/jobs?phase=Running").json()["items"] == []
    assert len(service.reader.get("/v1/jobs?name=j1").json()["items"]) == 1


def test_a_listed_job_is_the_job(service: Service) -> None:
    service.create()
    assert service.reader.get("/v1/jobs").json()["items"] == [service.reader.get(ONE).json()]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("cursor=x", 400, "usage"),
        ("cursor=%00", 400, "usage"),
        ("cursor=%ed%a0%80", 400, "usage"),
        ("cursor=" + "A" * 41, 422, "invalid-request"),
        ("limit=0", 422, "invalid-request"),
        ("limit=1001", 422, "invalid-request"),
        ("limit=" + "9" * 400, 422, "invalid-request"),
        ("limit=NaN", 422, "invalid-request"),
        ("phase=running", 422, "invalid-request"),
    ],
)
def test_wrong_queries(service: Service, query: str, status: int, code: str) -> None:
    problem(service.reader.get(f"/v1/jobs?{query}"), status, code)


def test_a_wrong_parameter_is_named(service: Service) -> None:
    [fault] = problem(service.reader.get("/v1/jobs?limit=0"), 422, "invalid-request")["errors"]
    assert fault == {"pointer": "", "parameter": "limit", "detail": "Input should be greater than or equal to 1"}


# ------------------------------------------------------------------ teams


def test_a_team_sees_only_its_own(service: Service) -> None:
    service.create("theirs", "other")
    service.create("ours", "vision")
    team = service.of_team("vision")
    for path in ("/v1/jobs", "/v1/jobs?namespace=vision"):
        assert [job["metadata"]["name"] for job in team.get(path).json()["items"]] == ["ours"]
    problem(team.get("/v1/jobs?namespace=other"), 404, "not-found")
    theirs = "/v1/jobs/other/theirs"
    hidden = [team.get(theirs), team.patch(theirs, json={}), team.delete(theirs), team.post(f"{theirs}:suspend")]
    absent = team.get("/v1/jobs/other/absent")
    for answer in hidden:
        found = problem(answer, 404, "not-found")
        assert found["detail"] == problem(absent, 404, "not-found")["detail"].replace("absent", "theirs")
    assert service.store.get("other", "theirs").generation == 1


def test_a_teams_job_is_its_own(service: Service) -> None:
    team = service.of_team("vision")
    document = service.document()
    del document["metadata"]["namespace"]
    assert team.post("/v1/jobs", json={"job": document}).json()["metadata"]["namespace"] == "vision"
    document["metadata"] = {"name": "mine", "namespace": "other"}
    problem(team.post("/v1/jobs", json={"job": document}), 403, "forbidden")


# ------------------------------------------------------------------ change


def test_a_limit_is_raised(service: Service) -> None:
    service.create(budget={"limit": "1.00"})
    answer = service.runner.patch(ONE, json={"spec": {"budget": {"limit": "2.00"}}})
    assert answer.status_code == 200
    assert answer.json()["spec"]["budget"]["limit"] == "2.00"
    assert answer.json()["metadata"]["generation"] == 2
    assert answer.headers["etag"].endswith('-2"')


@pytest.mark.parametrize(
    ("spec", "path", "value"),
    [
        ({"budget": {"limit": "3.00"}}, ("budget", "limit"), "3.00"),
        ({"suspend": True}, ("suspend",), True),
        ({"retry": {"maxAttempts": 9}}, ("retry", "maxAttempts"), 9),
        ({"retry": None}, ("retry", "maxAttempts"), 5),
        ({"tracking": {"tags": {"why": "x"}}}, ("tracking", "tags", "why"), "x"),
        ({"queue": {"priorityClass": "high"}}, ("queue", "priorityClass"), "high"),
    ],
)
def test_what_may_change(service: Service, spec: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    service.create()
    found = service.runner.patch(ONE, json={"spec": spec}).json()["spec"]
    for key in path:
        found = found[key]
    assert found == value


@pytest.mark.parametrize(
    ("patch", "pointer"),
    [
        ({"spec": {"training": {"tokens": 200_000}}}, "/spec/training/tokens"),
        ({"spec": {"model": {"overrides": {"layers": 4}}}}, "/spec/model/overrides/layers"),
        ({"spec": {"budget": {"currency": "EUR", "limit": "1.00"}}}, "/spec/budget/currency"),
        ({"spec": {"compute": None}}, "/spec/compute"),
        ({"spec": None}, "/spec"),
        ({"spec": 7}, "/spec"),
        ({"spec": {"suspend": "yes"}}, "/spec/suspend"),
        ({"spec": {"retry": {"maxAttempts": 10**400}}}, "/spec/retry/maxAttempts"),
        ({"spec": {"nonsense": True}}, "/spec/nonsense"),
        ({"spec": {"tracking": {"experiment": "other"}}}, "/spec/tracking/experiment"),
        ({"metadata": {"name": "other"}}, "/metadata/name"),
        ({"metadata": {"uid": "mine"}}, "/metadata/uid"),
        ({"metadata": {"labels": {"a": "b"}}}, "/metadata/labels/a"),
        ({"status": {"phase": "Succeeded"}}, "/status/phase"),
        ({"status": None}, "/status/phase"),
        ({"kind": "Other"}, "/kind"),
        ({"a/b~c": 1}, "/a~1b~0c"),
    ],
)
def test_what_is_fixed(service: Service, patch: dict[str, Any], pointer: str) -> None:
    before = service.create()
    found = problem(service.runner.patch(ONE, json=patch), 422, "invalid-job")
    assert pointer in pointers(found)
    assert service.reader.get(ONE).json() == before


def test_the_whole_document_with_one_change_is_a_patch(service: Service) -> None:
    document = service.create(budget={"limit": "1.00"})
    document["spec"]["budget"]["limit"] = "1.50"
    assert service.runner.patch(ONE, json=document).json()["spec"]["budget"]["limit"] == "1.50"


def test_a_patch_that_says_what_is_there_is_no_change(service: Service) -> None:
    document = service.create()
    assert service.runner.patch(ONE, json=document).json() == document
    assert service.runner.patch(ONE, json={}).json() == document


def test_a_limit_below_what_is_spent_is_refused(service: Service) -> None:
    service.create(budget={"limit": "5.00"})
    cost = Cost(spent="2.50", burn_per_hour="0", wasted="0", currency="USD")
    service.set_status(JobStatus(phase=Phase.RUNNING, observed_generation=1, cost=cost))
    refused = service.runner.patch(ONE, json={"spec": {"budget": {"limit": "2.49"}}})
    assert "below the 2.50 USD that are spent" in problem(refused, 422, "invalid-job")["detail"]
    assert service.runner.patch(ONE, json={"spec": {"budget": {"limit": "2.50"}}}).status_code == 200


def test_a_priority_is_fixed_once_admitted(service: Service) -> None:
    service.create()
    service.set_status(in_phase(Phase.RUNNING))
    refused = service.runner.patch(ONE, json={"spec": {"queue": {"priorityClass": "high"}}})
    assert pointers(problem(refused, 422, "invalid-job")) == ["/spec/queue/priorityClass"]


# ------------------------------------------------------------------ If-Match


def test_a_change_is_made_to_the_state_that_was_seen(service: Service) -> None:
    service.create()
    tag = service.reader.get(ONE).headers["etag"]
    patch = {"spec": {"suspend": True}}
    assert service.runner.patch(ONE, json=patch, headers={"If-Match": tag}).status_code == 200
    for answer in (
        service.runner.patch(ONE, json=patch, headers={"If-Match": tag}),
        service.runner.delete(ONE, headers={"If-Match": tag}),
        service.runner.post(f"{ONE}:cancel", headers={"If-Match": tag}),
    ):
        assert tag in problem(answer, 412, "precondition-failed")["detail"]
    assert service.store.get("default", "mini").generation == 2


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ("{tag}", 200), ("*", 200), (' "x" , {tag},"y"', 200), ('"x"', 412), ("W/{tag}", 412), ('""', 412),
        ("", 400), ("x", 400), ("{tag},", 400), ("*, *", 400), ("W/x", 400), ('"', 400), ("{tag}{tag}", 400),
    ],
)  # fmt: skip
def test_forms_of_if_match(service: Service, form: str, status: int) -> None:
    service.create()
    tag = service.reader.get(ONE).headers["etag"]
    answer = service.runner.patch(ONE, json={}, headers={"If-Match": form.format(tag=tag)})
    assert answer.status_code == status, answer.text


def test_several_if_match_headers_are_one_list(service: Service) -> None:
    service.create()
    tag = service.reader.get(ONE).headers["etag"]
    headers = [("If-Match", '"x"'), ("If-Match", tag)]
    assert service.runner.patch(ONE, json={}, headers=headers).status_code == 200


def test_a_tag_of_a_deleted_job_is_not_that_of_the_next(service: Service) -> None:
    service.create()
    tag = service.reader.get(ONE).headers["etag"]
    service.store.remove(service.store.get("default", "mini").uid)
    service.create()
    problem(service.runner.delete(ONE, headers={"If-Match": tag}), 412, "precondition-failed")


def test_of_many_patches_at_once_none_is_lost(service: Service) -> None:
    service.create()

    def tag(number: int) -> int:
        return service.runner.patch(ONE, json={"spec": {"tracking": {"tags": {f"t{number}": "x"}}}}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(tag, range(24))) == {200}
    assert len(service.reader.get(ONE).json()["spec"]["tracking"]["tags"]) == 24


def test_of_many_conditional_patches_at_once_one_wins(service: Service) -> None:
    service.create()
    seen = service.reader.get(ONE).headers["etag"]

    def patch(number: int) -> int:
        body = {"spec": {"tracking": {"tags": {"winner": str(number)}}}}
        return service.runner.patch(ONE, json=body, headers={"If-Match": seen}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(patch, range(8))) == [200] + [412] * 7


def test_a_race_with_a_condition_is_a_failed_precondition(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.create()
    tag = service.reader.get(ONE).headers["etag"]

    def late(*_: object, **__: object) -> StoredJob:
        raise Conflict("somebody was quicker")

    monkeypatch.setattr(service.store, "change", late)
    answer = service.runner.patch(ONE, json={}, headers={"If-Match": tag})
    assert "quicker" in problem(answer, 412, "precondition-failed")["detail"]


# ------------------------------------------------------------------ actions


def wish_of(service: Service) -> tuple[bool, bool, int, int]:
    wish = service.store.get("default", "mini").wish
    return wish.job.spec.suspend, wish.cancelled_at is not None, wish.granted_after, wish.resumed


def test_suspend_and_resume(service: Service) -> None:
    service.create()
    assert service.runner.post(f"{ONE}:suspend").json()["spec"]["suspend"] is True
    assert service.runner.post(f"{ONE}:suspend").json()["metadata"]["generation"] == 2, "nothing to change"
    service.set_status(JobStatus(phase=Phase.SUSPENDED, observed_generation=2, attempt_count=3))
    assert service.runner.post(f"{ONE}:resume").status_code == 200
    assert wish_of(service) == (False, False, 3, 1)


def test_resuming_twice_before_anybody_looked_is_once(service: Service) -> None:
    service.create()
    service.set_status(JobStatus(phase=Phase.FAILED, observed_generation=1, attempt_count=2))
    generations = [service.runner.post(f"{ONE}:resume").json()["metadata"]["generation"] for _ in range(2)]
    assert generations == [2, 2]


def test_a_job_that_failed_before_its_first_attempt_is_resumed_again_and_again(service: Service) -> None:
    service.create()
    for generation in (1, 2, 3):
        service.set_status(JobStatus(phase=Phase.FAILED, observed_generation=generation))
        assert service.runner.post(f"{ONE}:resume").json()["metadata"]["generation"] == generation + 1
        assert [job.name for job in service.store.open_jobs()] == ["mini"]


def test_a_job_that_goes_on_is_not_resumed(service: Service) -> None:
    before = service.create()
    assert service.runner.post(f"{ONE}:resume").json() == before


def test_a_limit_that_was_changed_in_the_folder_stays(service: Service) -> None:
    service.create(budget={"limit": "1.00"})
    stored = service.store.get("default", "mini")
    record = Record.take(service.home / stored.folder, stored.uid, stored.wish.job)
    service.set_status(JobStatus(phase=Phase.FAILED, observed_generation=1))
    change_limit(record, "5.00", service.settings)  # `fathom budget FOLDER`, of a job that no controller looks at
    found = service.runner.post(f"{ONE}:resume").json()
    assert (found["spec"]["budget"]["limit"], found["metadata"]["generation"]) == ("5.00", 2)
    change_limit(record, "7.00", service.settings)
    found = service.runner.patch(ONE, json={"spec": {"budget": {"limit": "6.00"}}}).json()
    assert found["spec"]["budget"]["limit"] == "6.00", "what is wished after that counts"


def test_cancel(service: Service) -> None:
    service.create()
    first = service.runner.post(f"{ONE}:cancel").json()
    assert first["metadata"]["cancelledAt"]
    assert service.runner.post(f"{ONE}:cancel").json() == first
    for verb in ("suspend", "resume"):
        assert "being cancelled" in problem(service.runner.post(f"{ONE}:{verb}"), 409, "conflict")["detail"]
    problem(service.runner.patch(ONE, json={"spec": {"suspend": True}}), 409, "conflict")


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.CANCELLED, Phase.FAILED])
def test_what_has_ended(service: Service, phase: Phase) -> None:
    service.create()
    service.set_status(in_phase(phase))
    assert "cancelledAt" not in service.runner.post(f"{ONE}:cancel").json()["metadata"]
    assert f"has ended ({phase})" in problem(service.runner.post(f"{ONE}:suspend"), 409, "conflict")["detail"]
    resumed = service.runner.post(f"{ONE}:resume")
    if phase is Phase.FAILED:
        assert resumed.status_code == 200
    else:
        assert f"has ended ({phase})" in problem(resumed, 409, "conflict")["detail"]


def test_delete(service: Service) -> None:
    service.create()
    first = service.runner.delete(ONE)
    assert first.status_code == 202
    assert first.json()["metadata"]["deletedAt"]
    assert service.runner.delete(ONE).json() == first.json()
    assert service.store.get("default", "mini").wish.keep_files is False
    assert service.runner.delete(f"{ONE}?keepFiles=true").status_code == 202
    assert service.store.get("default", "mini").wish.keep_files is True
    assert "being deleted" in problem(service.runner.post(f"{ONE}:suspend"), 409, "conflict")["detail"]


def test_every_change_wakes_the_controller(service: Service) -> None:
    service.create()
    for act in (
        lambda: service.runner.patch(ONE, json={"spec": {"suspend": True}}),
        lambda: service.runner.post(f"{ONE}:resume"),
        lambda: service.runner.post(f"{ONE}:cancel"),
        lambda: service.runner.delete(ONE),
    ):
        before = service.woken
        assert act().is_success
        assert service.woken > before


def test_a_reader_changes_nothing(service: Service) -> None:
    service.create()
    for answer in (
        service.reader.post("/v1/jobs", json={"job": service.document("other")}),
        service.reader.patch(ONE, json={}),
        service.reader.delete(ONE),
        *(service.reader.post(f"{ONE}:{verb}") for verb in ("cancel", "suspend", "resume")),
    ):
        assert "takes a token of role runner" in problem(answer, 403, "forbidden")["detail"]
    assert service.of_team("x", Role.READER).get("/v1/jobs").status_code == 200


def test_times_are_in_utc(service: Service) -> None:
    service.create()
    service.store.change(
        "default", "mini", lambda wish: replace(wish, cancelled_at=datetime(2026, 1, 2, 3, tzinfo=UTC))
    )
    assert service.reader.get(ONE).json()["metadata"]["cancelledAt"] == "2026-01-02T03:00:00.000000Z"
