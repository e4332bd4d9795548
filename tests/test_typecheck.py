import importlib
import sys
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from typecheck import FalseAnnotation, held, install

from jaxact import activations, numerics, theory
from jaxact.activations._activation import _kept
from jaxact.theory import initializers


def test_an_array_of_an_undeclared_dtype_is_found():
    weights = jnp.ones(3)
    numerics.expectation_with_tails(jnp.ones(3), weights)
    with pytest.raises(FalseAnnotation, match=r"expectation_with_tails\(\) parameter values="):
        numerics.expectation_with_tails(jnp.ones(3, int), weights)


def test_axes_of_one_name_have_one_size():
    with pytest.raises(FalseAnnotation, match=r"expectation_with_tails\(\) parameter weights="):
        numerics.expectation_with_tails(jnp.ones((2, 3)), jnp.ones(3))


def test_a_private_function_is_held_to_its_signature_too():
    with pytest.raises(FalseAnnotation, match=r"_kept\(\) parameter y="):
        _kept(np.ones(3), jnp.ones(3))


def test_what_a_door_refuses_it_refuses_in_its_own_words():
    with pytest.raises(TypeError, match="`sigma_w` must be one real number"):
        initializers.gaussian("wide")
    with pytest.raises(ValueError, match="`depth` must be an integer of at least 1"):
        theory.trajectory(activations.relu, 1.5, sigma_w=1.0)


class _Pair(NamedTuple):
    x: Float[Array, " n"]
    y: Float[Array, " n"]


def test_results_and_their_fields_are_held():
    @held
    def whole(number: float) -> int:
        return number // 1

    @held
    def pair(first: Float[Array, " n"], second: Float[Array, " m"]) -> _Pair:
        return _Pair(first, second)

    assert whole(2) == 2
    assert pair(jnp.ones(3), jnp.ones(3)).x.size == 3
    for call in (lambda: whole(1.0), lambda: pair(jnp.ones(3), jnp.ones(4))):
        with pytest.raises(FalseAnnotation):
            call()


def test_a_result_that_may_be_anything_is_not_held():
    @held
    def stacked(number: int) -> Any:
        return _Pair(jnp.ones((number, 3)), jnp.ones((number, 3)))

    assert stacked(2).x.shape == (2, 3)


def test_code_that_handles_every_exception_hides_nothing():
    @held
    def floor(number: int) -> int:
        return int(number)

    def swallow():
        try:
            floor(0.5)
        except Exception:
            return None

    with pytest.raises(FalseAnnotation, match="floor"):
        swallow()


_MODULE = """
from dataclasses import dataclass
from functools import cache

@cache
def decorated(number: int): return number
def outer():
    def inner(number: "int") -> "Later": return number
    return inner
@dataclass
class Whole:
    number: int
@dataclass
class Word:
    number: str
class Method:
    def __call__(self, *numbers: int, **words: str) -> None: pass
Later = int
def undeclared(number=1): return number
"""


def test_whatever_a_package_declares_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "made_up.py").write_text(_MODULE)
    install("made_up")
    module = importlib.import_module("made_up")
    for each in (module.decorated, module.outer(), module.Whole, module.Method()):
        each(1)
        with pytest.raises(FalseAnnotation, match=r"number|\*"):
            each("1")
    module.Word("1")
    with pytest.raises(FalseAnnotation, match="number=1"):  # though its __init__ has the code of Whole's
        module.Word(1)
    module.Method()(word="1")
    with pytest.raises(FalseAnnotation, match="word=1"):
        module.Method()(word=1)
    assert not hasattr(module.undeclared, "__wrapped__")
