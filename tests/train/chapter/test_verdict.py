"""A verdict can come out every way, by the interval of the runs and nothing else."""

import math

import numpy as np
import pytest
from scipy import stats

from train.experiments.chapter.verdict import CORRECTED, FAILS, HOLDS, UNDECIDED, Number, judge, overall

DRAWS = [0.9, 1.0, 1.1, 1.0, 1.0]


def number(chapter, relation="equal", tolerance=0.2):
    return Number("x", chapter=chapter, relation=relation, tolerance=tolerance)


@pytest.mark.parametrize(
    ("relation", "chapter", "verdict"),
    [
        ("equal", 1.0, HOLDS),
        ("equal", 2.0, FAILS),
        ("equal", 0.0, FAILS),
        ("equal", 1.2, UNDECIDED),  # the tolerance ends at 1.0, inside the interval
        ("at_most", 1.0, HOLDS),
        ("at_most", 5.0, HOLDS),
        ("at_most", 0.5, FAILS),
        ("at_most", 0.8, UNDECIDED),
        ("at_least", 1.0, HOLDS),
        ("at_least", -5.0, HOLDS),
        ("at_least", 1.5, FAILS),
        ("at_least", 1.2, UNDECIDED),
    ],
)
def test_the_whole_interval_decides(relation, chapter, verdict):
    assert judge(number(chapter, relation), DRAWS).verdict == verdict


def test_the_interval_is_students():
    found = judge(number(1.0), DRAWS)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(DRAWS), scale=stats.sem(DRAWS))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.measured == pytest.approx(1.0)


def test_a_number_that_is_not_random_is_its_own_interval():
    assert judge(number(1.0, tolerance=0.0), 1.0) == (1.0, 1.0, 1.0, HOLDS, "")
    assert judge(number(1.0, tolerance=0.0), np.nextafter(1.0, 2.0)).verdict == FAILS


def test_an_interval_too_wide_to_tell_confirms_nothing():
    assert judge(number(0.0, tolerance=0.1), [-100, 100, -50, 50, 0]).verdict == UNDECIDED


@pytest.mark.parametrize(
    ("draws", "word"),
    [
        ([1.0, 1.0, 1.0, 1.0], "4 runs cannot be judged: 5 are needed"),
        ([1.0], "1 run cannot be judged"),
        ([1.0, 1.0, 1.0, 1.0, math.nan], "1 of 5 runs gave no finite number"),
        ([1.0, 1.0, 1.0, 1.0, math.inf], "1 of 5 runs gave no finite number"),
        (math.nan, "1 of 1 runs gave no finite number"),
    ],
)
def test_what_cannot_be_judged_says_why(draws, word):
    found = judge(number(1.0), draws)
    assert found.verdict == UNDECIDED
    assert word in found.reason


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ([(True, HOLDS), (False, HOLDS)], HOLDS),
        ([(True, HOLDS), (False, FAILS)], CORRECTED),
        ([(True, HOLDS), (False, UNDECIDED)], HOLDS),
        ([(True, HOLDS), (True, UNDECIDED), (False, FAILS)], UNDECIDED),
        ([(True, HOLDS), (True, FAILS), (True, UNDECIDED)], FAILS),
    ],
)
def test_a_claim_stands_or_falls_with_its_core(numbers, verdict):
    assert overall(numbers) == verdict


@pytest.mark.parametrize("relation", ["at_least", "at_most"])
def test_runs_that_all_lie_on_a_floor_or_a_cap_decide_nothing(relation):
    number = Number("steps of one less the other's", 0.0, relation=relation)
    found = judge(number, [0.0] * 5)
    assert (found.verdict, found.reason) == (
        UNDECIDED,
        "all runs give 0 itself, which may be a floor or a cap",
    )
    assert judge(number, 0.0).verdict == HOLDS  # one number that is not random
    assert judge(number._replace(relation="equal"), [0.0] * 5).verdict == HOLDS
    assert judge(number._replace(tolerance=0.1), [0.0] * 5).verdict == HOLDS  # not at the end of what agrees
