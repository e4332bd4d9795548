"""The claim on sparsity: samples against NumPy and another activation, dead units against training by hand."""

from dataclasses import replace

import numpy as np

from jaxact import activations
from train.experiments.chapter import sparsity
from train.experiments.chapter.claim import judged

CLAIM = sparsity.Sparsity()


def verdicts(measured):
    numbers = {name: number for name, number in CLAIM.numbers().items() if name in measured}
    return dict(zip(numbers, judged(numbers, measured)["verdict"].to_numpy().tolist(), strict=True))


def test_a_relu_with_its_kink_elsewhere_refutes_the_shares(monkeypatch):
    names = ("half", "grid", "leaky")
    assert set(verdicts(dict(zip(names, CLAIM._sampled(), strict=True))).values()) == {"holds"}
    relu = activations.relu
    monkeypatch.setattr(activations, "relu", lambda z: relu(z - 0.05))
    found = verdicts(dict(zip(names, CLAIM._sampled(), strict=True)))
    assert found == {"half": "does not hold", "grid": "does not hold", "leaky": "holds"}


def test_activations_in_each_others_place_refute_what_is_said_of_dead_units():
    small = replace(CLAIM, activations=CLAIM.activations[:2], learning_rates=(0.03, 1.0), num_steps=60)
    _, dead = small._dead()
    assert dead.shape == (2, 2, len(small.seeds))
    relu, leaky = dead
    assert verdicts({"dead": relu[1] - relu[0], "leaky_dead": np.fmax.reduce(leaky)}) == {
        "dead": "holds",
        "leaky_dead": "holds",
    }
    assert verdicts({"leaky_dead": relu.max(0)}) == {"leaky_dead": "does not hold"}


def test_what_forces_zeros_makes_more_of_them():
    small = replace(CLAIM, seeds=(0,), num_steps=100)
    plain, *forced = small._forced()[:, :, 0]  # at the smallest learning rate
    for way, (accuracy, zeros) in zip(("threshold", "l1"), forced - plain, strict=True):
        assert np.isfinite(accuracy).all()
        assert (zeros > 0).all()
        assert verdicts({f"{way}_zeros": zeros}) == {f"{way}_zeros": "holds"}
        assert verdicts({f"{way}_zeros": -zeros}) == {f"{way}_zeros": "does not hold"}
