"""The sequence problems: what they ask, what remembers nothing loses, and that no study of vectors finds them."""

import jax
import numpy as np
import pytest

from train import tasks

KEY = jax.random.key(0)


def test_adding_marks_one_number_in_each_half_and_asks_for_their_sum():
    for length in (2, 7, 50):
        task = tasks.Adding(length=length)
        inputs, targets = map(np.asarray, task.sample(KEY, 500))
        assert inputs.shape == (500, length, task.in_features)
        numbers, marks = inputs[..., 0], inputs[..., 1]
        assert (marks[:, : length // 2].sum(1) == 1).all()
        assert (marks[:, length // 2 :].sum(1) == 1).all()
        expected = [row[mark == 1].sum() for row, mark in zip(numbers, marks, strict=True)]
        np.testing.assert_allclose(targets, expected, rtol=1e-6)
        outputs = targets[:, None, None]
        assert task.loss(outputs, targets) == 0
        assert task.loss(outputs + 0.5, targets) == pytest.approx(0.25)


def test_the_best_constant_answer_to_adding_loses_its_baseline():
    task, num = tasks.Adding(length=10), 20_000
    _, targets = task.sample(KEY, num)
    error = 5 * float(np.std((np.asarray(targets) - 1) ** 2)) / num**0.5
    assert task.loss(np.ones((num, 1, 1), np.float32), targets) == pytest.approx(task.baseline, abs=error)


def test_copy_memory_asks_for_what_came_before_the_pause():
    task = tasks.CopyMemory(length=9, num_symbols=3, num_kinds=4)
    inputs, targets = map(np.asarray, task.sample(KEY, 200))
    assert inputs.shape == (200, 9 + 2 * 3, task.in_features)
    codes = inputs.argmax(-1)
    np.testing.assert_array_equal(inputs.sum(-1), 1)
    np.testing.assert_array_equal(codes[:, :3], targets)
    assert set(np.unique(targets)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(codes[:, 3:], np.tile([4] * 8 + [5] + [4] * 3, (200, 1)))
    # The marker is the last input before the answer of the first symbol.
    assert codes.shape[1] - task.num_outputs - 1 == np.flatnonzero(codes[0] == 5)[0]


def test_guessing_at_copy_memory_loses_its_baseline_and_knowing_nothing():
    task = tasks.CopyMemory(length=5, num_symbols=3, num_kinds=4)
    _, targets = task.sample(KEY, 50)
    assert task.loss(np.zeros((50, 3, 4), np.float32), targets) == pytest.approx(task.baseline, rel=1e-6)
    assert task.loss(50 * np.eye(4, dtype=np.float32)[np.asarray(targets)], targets) < 1e-6
    assert task.baseline == pytest.approx(np.log(4))


@pytest.mark.parametrize(
    "task", [tasks.Adding(length=20), tasks.CopyMemory(length=20)], ids=lambda task: task.name
)
def test_what_is_drawn_depends_on_the_key_alone(task):
    first, again, other = (task.sample(jax.random.key(seed), 4) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    assert (np.asarray(first[0]) != np.asarray(other[0])).any()
    assert task.loss(np.zeros((4, task.num_outputs, task.out_features), np.float32), first[1]).shape == ()


def test_no_study_of_vectors_finds_them():
    assert not {"adding", "copy_memory"} & set(tasks.names())
    for name in ("adding", "copy_memory"):
        with pytest.raises(ValueError, match="`task` must be one of"):
            tasks.parse(name)


def test_fields_out_of_range_are_refused_by_name():
    with pytest.raises(ValueError, match="`length` must be an integer of at least 2, got 1"):
        tasks.Adding(length=1)
    with pytest.raises(ValueError, match="`num_kinds` must be an integer of at least 2, got 1"):
        tasks.CopyMemory(num_kinds=1)
