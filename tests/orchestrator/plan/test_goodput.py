"""Goodput in closed form: Daly's exact form where it holds, shares that add up, and sane limits."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UsageError
from orchestrator.plan.checkpointing import exact_goodput, no_spare_share, optimal_interval
from orchestrator.plan.failures import Lemons, Stragglers
from orchestrator.plan.goodput import (
    CHECKPOINTS,
    LEMONS,
    ORIGINS,
    STRAGGLERS,
    Cause,
    Failures,
    Recovery,
    failure_models,
    goodput,
)

LLAMA = failure_models()["llama-3"]
PLAIN = Recovery(save_seconds=10, restart_seconds=500, detect_seconds=100, replace_seconds=0, upload_seconds=0)


def single(per_hour: float, cure: str = "node") -> Failures:
    return Failures("one", (Cause("it", per_job_hour=per_hour, cure="node" if cure == "node" else "process"),))


@given(
    mtbf=st.floats(0.2, 1e4),
    save=st.floats(0.1, 600),
    restart=st.floats(0, 3600),
    interval=st.none() | st.floats(10, 1e5),
)
def test_one_cause_and_one_level_is_dalys_exact_form(
    mtbf: float, save: float, restart: float, interval: float | None
) -> None:
    recovery = Recovery(save, restart, detect_seconds=0, replace_seconds=0, upload_seconds=0)
    found = goodput(8, 8, single(1 / mtbf), recovery, interval)
    tau = interval or optimal_interval(save, mtbf * 3600)
    assert found.interval_seconds == pytest.approx(tau)
    assert found.fraction == pytest.approx(exact_goodput(tau, save, mtbf * 3600, restart), abs=1e-12)
    assert found.mtbf_hours == pytest.approx(mtbf)


def test_llama_3_has_its_ninety_percent_at_ten_minutes_and_ten_seconds() -> None:
    found = goodput(16384, 8, LLAMA, Recovery(restart_seconds=600, detect_seconds=0, hang_seconds=0, replace_seconds=0,
                                              upload_seconds=0))  # fmt: skip
    assert found.fraction == pytest.approx(0.908, abs=0.0005)
    assert found.interval_seconds == pytest.approx(472, rel=0.03)


@given(
    gpus=st.integers(1, 200_000),
    save=st.floats(0.1, 2000),
    restart=st.floats(0, 1e4),
    local=st.none() | st.floats(0.1, 60),
    spares=st.none() | st.integers(0, 200),
    upload=st.floats(0, 600),
    in_place=st.booleans(),
    peers=st.booleans(),
    name=st.sampled_from(sorted(failure_models())),
)
def test_shares_add_up_to_the_whole_time(
    gpus: int, save: float, restart: float, local: float | None, spares: int | None, upload: float, in_place: bool,
    peers: bool, name: str,
) -> None:  # fmt: skip
    model = failure_models()[name]
    slow = Failures(name, model.causes, stragglers=Stragglers(0.001, 1.3, 600), lemons=Lemons(0.05, 0.01))
    recovery = Recovery(save, restart, upload_seconds=upload, local_save_seconds=local, spares=spares,
                        in_place=in_place, peer_copies=peers, exclude_after=None)  # fmt: skip
    found = goodput(gpus, 8, slow, recovery)
    assert 0 <= found.fraction < 1
    assert found.fraction + math.fsum(found.lost.values()) == pytest.approx(1, abs=1e-9)
    assert found.fraction + math.fsum(found.lost_by_class.values()) == pytest.approx(1, abs=1e-9)
    assert min([*found.lost.values(), *found.lost_by_class.values()]) >= 0
    if found.local_interval_seconds is not None and math.isfinite(found.interval_seconds):
        ratio = found.interval_seconds / found.local_interval_seconds
        assert ratio == pytest.approx(round(ratio))


def test_each_improvement_improves() -> None:
    base = Recovery(spares=8)
    worst = goodput(16384, 8, LLAMA, base).fraction
    for better in (
        Recovery(spares=9), Recovery(spares=8, save_seconds=5), Recovery(spares=8, detect_seconds=5),
        Recovery(spares=8, hang_seconds=5), Recovery(spares=8, replace_seconds=5), Recovery(spares=8, upload_seconds=5),
        Recovery(spares=8, repair_hours=12),
    ):  # fmt: skip
        assert goodput(16384, 8, LLAMA, better).fraction > worst
    assert goodput(16384, 8, LLAMA, Recovery(spares=8, in_place=False)).fraction < worst


def test_two_levels_help_where_saving_is_dear() -> None:
    dear = Recovery(save_seconds=120, upload_seconds=600)
    one = goodput(2048, 8, failure_models()["ant"], dear)
    two = goodput(
        2048, 8, failure_models()["ant"], Recovery(save_seconds=120, upload_seconds=600, local_save_seconds=2)
    )
    assert two.fraction > one.fraction + 0.01
    assert two.interval_seconds > one.interval_seconds, "fewer failures need the remote one"
    assert two.local_interval_seconds == pytest.approx(optimal_interval(2, 4.34 * 3600 / 0.75), rel=0.1)


def test_waiting_for_spares_is_erlangs() -> None:
    found = goodput(16384, 8, LLAMA, Recovery(spares=3))
    per_hour = (419 - 54 - 7 - 2) / 1296
    assert found.lost_by_class["waiting"] == pytest.approx(no_spare_share(per_hour, 24 - 1 / 60, 3)), (
        "less the minute in which the loss is noticed"
    )
    assert found.lost["faulty GPU"] > goodput(16384, 8, LLAMA, Recovery()).lost["faulty GPU"]
    assert "waiting" not in {k for k, v in goodput(16384, 8, LLAMA, Recovery()).lost_by_class.items() if v}


def test_lemons_count_unless_they_are_excluded() -> None:
    model = Failures("ours", LLAMA.causes, lemons=Lemons(3 / 63, 1 / 24))
    kept = goodput(504, 8, model, Recovery(exclude_after=None))
    assert kept.mtbf_hours == pytest.approx(1 / (1 / LLAMA.mtbf_hours(504, 8) + 3 / 24))
    assert kept.lost[LEMONS] > 0
    assert goodput(504, 8, model, Recovery()).mtbf_hours == pytest.approx(LLAMA.mtbf_hours(504, 8))


def test_stragglers_slow_the_whole_job() -> None:
    model = Failures("slow", (), stragglers=Stragglers(per_node_hour=1e-3, slowdown=1.25, seconds=3600))
    found = goodput(8000, 8, model, Recovery())
    assert found.lost == {STRAGGLERS: pytest.approx((1 - math.exp(-1)) * 0.2)}


def test_what_never_fails_needs_no_checkpoint() -> None:
    found = goodput(8, 8, Failures("never", ()), Recovery())
    assert (found.fraction, found.interval_seconds, found.mtbf_hours, found.lost) == (1, math.inf, math.inf, {})
    given_one = goodput(8, 8, Failures("never", ()), Recovery(save_seconds=10), 90)
    assert given_one.lost == {CHECKPOINTS: pytest.approx(0.1)}
    both = goodput(8, 8, single(0.1, "process"), Recovery(local_save_seconds=2))
    assert both.local_interval_seconds == pytest.approx(379, rel=0.1)
    assert both.interval_seconds == pytest.approx(optimal_interval(10, 36000), rel=0.3), "as if there were no copies"


def test_hopeless_jobs_do_not_crash() -> None:
    found = goodput(10_000_000, 8, failure_models()["ant"], Recovery(save_seconds=3600))
    assert 0 <= found.fraction < 1e-6


def test_every_default_says_where_it_comes_from() -> None:
    assert set(ORIGINS) < set(Recovery.__dataclass_fields__)
    for name, origin in ORIGINS.items():
        value = float(getattr(Recovery(), name))
        number, _, unit = origin.partition(":")[0].partition(" ")
        assert float(number) * {"min": 60, "s": 1, "h": 1, "": 1}[unit] == value, name


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, 1e12])
def test_nonsense_is_refused_with_both_numbers(bad: float) -> None:
    with pytest.raises(UsageError, match=f"restart seconds must be between 0 and 1,000,000,000, got {bad}"):
        Recovery(restart_seconds=bad)
    with pytest.raises(UsageError, match=f"interval must be more than 0 and at most 1,000,000,000 s, got {bad}"):
        goodput(8, 8, LLAMA, Recovery(), bad)


def test_other_nonsense() -> None:
    with pytest.raises(UsageError, match="save seconds must be more than 0, got 0"):
        Recovery(save_seconds=0)
    with pytest.raises(UsageError, match="exclude after must be between 1 and"):
        Recovery(exclude_after=0)
    with pytest.raises(UsageError, match=r"every 30 s .* one takes 60 s to upload; .* at least 60 s"):
        goodput(8, 8, LLAMA, Recovery(), 30)
    with pytest.raises(UsageError, match="GPUs must be between 1"):
        goodput(0, 8, LLAMA, Recovery())
