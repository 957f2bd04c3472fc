"""Unix time that never runs back."""

from __future__ import annotations

from orchestrator.controller.clock import ForwardClock


def test_a_clock_that_is_set_back_is_carried_on_by_the_other_until_it_has_caught_up() -> None:
    wall, forward = 1000.0, 5.0
    clock = ForwardClock(lambda: wall, lambda: forward)
    assert (clock.now(), clock.ahead) == (1000.0, 0.0)
    wall, forward = 910.0, 15.0  # ten seconds later, set back by a hundred
    assert (clock.now(), clock.ahead) == (1010.0, 100.0)
    wall, forward = 920.0, 25.0
    assert (clock.now(), clock.ahead) == (1020.0, 100.0)
    wall, forward = 1030.0, 35.0  # put right
    assert (clock.now(), clock.ahead) == (1030.0, 0.0)
    wall = 2000.0  # the machine slept: it held its devices
    assert clock.now() == 2000.0


def test_what_was_counted_is_not_counted_again() -> None:
    clock = ForwardClock(lambda: 900.0, lambda: 5.0, not_before=1000.0)
    assert (clock.now(), clock.ahead) == (1000.0, 100.0)
    assert ForwardClock(lambda: 900.0, lambda: 5.0, not_before=800.0).now() == 900.0
