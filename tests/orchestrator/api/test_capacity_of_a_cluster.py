"""What the API says of machines that it does not share out itself."""

from __future__ import annotations

from support.api import Service
from support.store import small_job

from orchestrator.api.capacity import Capacity, Holder, Slots, in_words, never, slowly


def test_a_cluster_says_itself_how_much_there_is(service: Service) -> None:
    service.capacity = Capacity(None, (Holder("a", "one", Slots(2, 8)),))
    found = service.reader.get("/v1/capacity").json()
    assert found["total"] is None
    assert (found["used"], len(found["holders"])) == ({"cpus": 2, "gpus": 8}, 1)
    metrics = service.reader.get("/metrics").text
    assert 'fathom_slots{kind="gpu",state="used"} 8.0' in metrics
    assert 'state="total"' not in metrics


def test_no_job_is_too_large_for_what_nobody_has_counted() -> None:
    job = small_job("mini", "default", compute={"accelerator": "H100", "gpus": 2048})
    cluster, laptop = Capacity(None), Capacity(Slots(8, 0))
    assert (never(job, cluster), slowly(job, cluster)) == ("", "")
    assert never(job, laptop)
    assert in_words(None) == "what the cluster has"
