"""Which of the champions so far a candidate is compared with."""

from pneumo.commands.promote import _references
from tests.benchmarks.gate import drifting

BEST, GOOD, LAST, *_ = drifting()  # each is a little worse than the one before
CHAMPIONS = {1: BEST, 2: GOOD, 3: LAST}


def test_the_champion_and_the_best_so_far_if_that_is_another():
    assert _references(CHAMPIONS, 4, 3) == {"": LAST, "best_": BEST}
    assert _references(CHAMPIONS, 4, 1) == {"": BEST}


def test_nobody_is_compared_with_himself():
    assert _references(CHAMPIONS, 1, 3) == {"": LAST}


def test_without_the_champion_the_best_so_far_is_left():
    assert _references(CHAMPIONS, 4, 9) == {"best_": BEST}
    assert _references({}, 4, 0) == {}
