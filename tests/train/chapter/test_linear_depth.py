"""The claim on linear stacks: its bound on XOR by search, its collapse, and stacks that are not linear."""

import itertools

import numpy as np
import pytest

from jaxact import activations
from train.experiments.chapter import linear_depth
from train.experiments.chapter.claim import judged

CLAIM = linear_depth.LinearDepth()


def verdict(name, measured):
    return judged({name: CLAIM.numbers()[name]}, {name: measured})["verdict"].item()


def test_no_linear_map_has_more_than_three_corners_right():
    grid = itertools.product(np.linspace(-1, 1, 21), repeat=3)
    best = max(np.mean((linear_depth._CORNERS @ (a, b) + c > 0) == linear_depth._CLASSES) for a, b, c in grid)
    assert CLAIM.numbers()["xor"].exact == best == 0.75


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_a_stack_with_an_activation_in_it_does_not_collapse(name, monkeypatch):
    sizes = CLAIM.layers, CLAIM.width, CLAIM.bottleneck
    gap, rank = linear_depth._collapsed(*sizes)
    assert (verdict("gap", gap), verdict("rank", rank)) == ("holds", "holds")
    monkeypatch.setattr(activations, "identity", getattr(activations, name))
    gap, rank = linear_depth._collapsed(*sizes)
    assert (verdict("gap", gap), verdict("rank", rank)) == ("does not hold", "does not hold")


def test_a_stack_that_fits_xor_refutes_the_claim():
    corners = dict(zip(("inputs", "labels"), (linear_depth._CORNERS, linear_depth._CLASSES), strict=True))
    both = {f"{part}_{name}": each for part in ("train", "test") for name, each in corners.items()}
    data = linear_depth.Data(**both, num_classes=2, name="xor")
    accuracy, _ = CLAIM._trained(data, (1,))
    assert verdict("xor", accuracy[0, 0]) == "holds"
    assert all(verdict("xor", each[0]) == "does not hold" for each in accuracy[1:])
