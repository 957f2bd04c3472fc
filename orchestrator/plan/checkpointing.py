"""When to save and what failures cost, in closed form. Pure mathematics on seconds; no data, no files.

C is the time that training stands still for a checkpoint, M the mean time between failures of the job, R the time from
a failure until training goes on, tau the training time between two checkpoints. All in the same unit.

Called by `plan.goodput`. UsageError for what is not a positive finite number.
"""

from __future__ import annotations

import math

from orchestrator.errors import UsageError

MOST_IN_REPAIR = 1_000_000


def young(save: float, mtbf: float) -> float:
    """sqrt(2CM). Young 1974, A first order approximation to the optimum checkpoint interval. Good for C << M."""
    _positive(save=save, mtbf=mtbf)
    return math.sqrt(2 * save * mtbf)


def daly(save: float, mtbf: float) -> float:
    """sqrt(2CM) (1 + sqrt(C/2M)/3 + (C/2M)/9) - C. Daly 2006, A higher order estimate of the optimum checkpoint
    interval. For C < 2M; beyond that Daly's answer is M."""
    _positive(save=save, mtbf=mtbf)
    if save >= 2 * mtbf:
        return mtbf
    ratio = save / (2 * mtbf)
    return math.sqrt(2 * save * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save


def optimal_interval(save: float, mtbf: float) -> float:
    """The tau that makes `exact_goodput` largest: tau/M = 1 - exp(-(tau+C)/M), by Newton's method. Young and Daly are
    the beginning of its series. It does not depend on R. Infinite if nothing fails; for any C and M."""
    _positive(save=save)
    if mtbf == math.inf:
        return math.inf
    _positive(mtbf=mtbf)
    c = save / mtbf
    x = min(1.0, math.sqrt(2 * c))
    for _ in range(100):
        # f rises and is convex, and the start lies above the root: Newton's steps come down to it and never pass it.
        f, slope = x + math.expm1(-(x + c)), -math.expm1(-(x + c))
        step = f / slope
        x -= step
        if abs(step) <= 1e-14 * x:
            break
    return x * mtbf


def availability_period(save: float, mtbf: float, restart: float) -> float:
    """C + sqrt(2(M+R)C + C^2): from one checkpoint's start to the next one's. NVIDIA, arXiv 2410.18124; C, R < M."""
    _positive(save=save, mtbf=mtbf)
    _not_negative(restart=restart)
    return save + math.sqrt(2 * (mtbf + restart) * save + save**2)


def exact_goodput(interval: float, save: float, mtbf: float, restart: float) -> float:
    """tau / (M exp(R/M) (exp((tau+C)/M) - 1)): the share of time whose work counts. Daly 2006.

    Exact if failures are exponential, may strike while saving and recovering, and every recovery takes R once more.
    """
    _positive(interval=interval, mtbf=mtbf)
    _not_negative(save=save, restart=restart)
    if (restart + interval + save) / mtbf > 700:
        return 0.0
    return interval / (mtbf * math.exp(restart / mtbf) * math.expm1((interval + save) / mtbf))


def first_order_goodput(interval: float, save: float, mtbf: float, restart: float) -> float:
    """1 - C/tau - (tau/2 + R)/M: good while both parts are a few percent; too low beyond, and then even negative."""
    _positive(interval=interval, mtbf=mtbf)
    _not_negative(save=save, restart=restart)
    return 1 - save / interval - (interval / 2 + restart) / mtbf


def two_tier_goodput(
    process_share: float,
    local: tuple[float, float, float],
    remote: tuple[float, float, float],
    mtbf: float,
) -> float:
    """First order with two kinds of failures: `process_share` of them go back to the local checkpoint, the rest to the
    remote one. `local` and `remote` are (interval, save, restart).

    R = p R1 + (1-p) R2, rework = p tau1/2 + (1-p) tau2/2; as good as `first_order_goodput`.
    """
    if not 0 <= process_share <= 1:
        raise UsageError(
            f"the share of failures that a process restart cures must be within 0 and 1, got {process_share}"
        )
    share = (process_share, 1 - process_share)
    _positive(mtbf=mtbf, local_interval=local[0], remote_interval=remote[0])
    per_failure = sum(p * (tau / 2 + restart) for p, (tau, _, restart) in zip(share, (local, remote), strict=True))
    return 1 - sum(save / tau for tau, save, _ in (local, remote)) - per_failure / mtbf


def budget_per_failure(goodput: float, mtbf: float) -> float:
    """(1-E) M: all that a failure may cost, checkpoints included, if the share E of time is to count. First order."""
    _positive(mtbf=mtbf)
    if not 0 <= goodput <= 1:
        raise UsageError(f"goodput is a share within 0 and 1, got {goodput}")
    return (1 - goodput) * mtbf


def spares_needed(losses_per_hour: float, repair_hours: float, risk: float) -> int:
    """The least S with P[more than S nodes in repair at a time] < risk: their number is Poisson with mean losses x
    repair (Palm; whatever the distribution of repair times). Good while waiting for a node is rare."""
    _not_negative(losses_per_hour=losses_per_hour)
    _positive(repair_hours=repair_hours)
    if not 0 < risk < 1:
        raise UsageError(f"the risk of having no spare must be between 0 and 1, got {risk}")
    mean = losses_per_hour * repair_hours
    if mean > MOST_IN_REPAIR:
        raise UsageError(
            f"{mean:,.0f} nodes would be in repair at a time; at most {MOST_IN_REPAIR:,}: repair in fewer hours"
        )
    # Terms relative to the first would overflow, and exp(-mean) underflow, for large means: sum in logarithms.
    spares, below = -1, 0.0
    while 1 - below >= risk:
        spares += 1
        below += math.exp(spares * math.log(mean) - mean - math.lgamma(spares + 1)) if mean else 1.0
        if spares > mean + 40 * math.sqrt(mean + 1):
            break  # what is left is rounding
    return spares


def no_spare_share(losses_per_hour: float, repair_hours: float, spares: int) -> float:
    """The share of time in which a job waits for a node: Erlang's B formula with S+1 servers.

    With k nodes in repair the job runs while k <= S; the (S+1)th loss stops it until one comes back, and a job that
    stands loses no more nodes. Exact for exponential losses and any distribution of repair times.
    """
    _not_negative(losses_per_hour=losses_per_hour, repair_hours=repair_hours, spares=spares)
    load, inverse = losses_per_hour * repair_hours, 1.0
    if load == 0:
        return 0.0
    for servers in range(1, spares + 2):
        inverse = 1 + inverse * servers / load
        if inverse > 1e15:
            return 0.0
    return 1 / inverse


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"{name.replace('_', ' ')} must be a positive finite number, got {value}")


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name.replace('_', ' ')} must be finite and not negative, got {value}")
