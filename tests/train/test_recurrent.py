"""Small recurrent networks learn what needs little memory, alone as beside others."""

import numpy as np
import pytest

from jaxact import activations
from train.recurrent import LAWS, MemoryTrial, longest_trained, small_signal_gain
from train.tasks import Adding, CopyMemory

CHOICES = tuple(map(activations.parse, ("relu", "tanh")))


def trial(task, **options):
    options = {"hidden": 8, "batch_size": 16, "num_steps": 100, "learning_rate": 0.02, **options}
    return MemoryTrial(task=task, activations=CHOICES, **options)


def test_a_short_memory_is_learned_and_a_long_one_is_not():
    short, long = (CopyMemory(length=length, num_symbols=1, num_kinds=2) for length in (2, 60))
    assert (trial(short).final_loss(1, (0, 1))[:2] < 0.5 * short.baseline).all()
    untrained = trial(long, num_steps=10, learning_rate=1e-4).final_loss(1, (0, 1))
    assert untrained.shape == (len(LAWS), 2)
    assert (untrained > 0.5 * long.baseline).all()


def test_a_seed_alone_gives_what_it_gives_beside_others():
    adding = trial(Adding(length=6), num_steps=20)
    together, alone = adding.final_loss(0, (3, 4)), adding.final_loss(0, (4,))
    np.testing.assert_allclose(together[:, 1:], alone, rtol=1e-4)
    assert (np.abs(together[:, 0] - together[:, 1]) > 1e-6).all()


def test_a_gain_keeps_small_signals():
    for name in ("relu", "leaky_relu(0.2)", "tanh", "sigmoid", "elu"):
        f, gain = activations.parse(name), small_signal_gain(activations.parse(name))
        z = 1e-4 * np.random.default_rng(0).normal(size=200_000).astype(np.float32)
        assert gain**2 * np.mean(np.asarray(f.derivative(z)) ** 2) == pytest.approx(1, rel=0.02)


def test_only_half_of_the_memoryless_loss_counts_and_where_none_trained_nothing_longer_is_tried(monkeypatch):
    tried = []

    def final_loss(self, index, seeds):
        tried.append((self.task.length, index))
        share = {0: 0.4, 1: 0.4 if self.task.length == 50 else np.nan}[index]
        losses = np.full((3, len(seeds)), share * self.task.baseline)
        losses[2] = 0.6 * self.task.baseline
        return losses

    monkeypatch.setattr(MemoryTrial, "final_loss", final_loss)
    trials = [trial(Adding(length=length)) for length in (50, 100, 200)]
    longest = longest_trained(trials, (0, 1), lambda fraction, said: None)
    np.testing.assert_array_equal(longest[..., 0], [[200, 200, 0], [50, 50, 0]])
    assert tried == [(50, 0), (50, 1), (100, 0), (100, 1), (200, 0)]
