"""Names and parameters to activations and back."""

import hypothesis
import hypothesis.strategies as st
import jax
import pytest

from jaxact import activations
from jaxact.activations import Activation, names, parse

FAMILIES = [n for n in names() if not isinstance(getattr(activations, n), Activation)]


@pytest.mark.parametrize("name", names())
def test_every_name_parses_and_canonical_names_parse_to_the_same_object(name):
    activation = parse(name)
    assert isinstance(activation, Activation)
    assert parse(activation.name) is parse(str(activation)) is parse(f"{activation}") is activation
    assert activation.name == ("silu" if name == "swish" else name)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(st.sampled_from(FAMILIES), st.floats(1e-3, 1e3))
def test_families_round_trip_with_any_parameter(family, value):
    activation = getattr(activations, family)(value)
    assert parse(str(activation)) is activation
    assert parse(f"{family}({value!r})") is activation


def test_text_and_repr_of_those_that_are_no_members():
    mine = activations.from_callable(jax.numpy.tanh, name="mine")
    assert str(mine) == "mine"
    assert repr(mine) == "mine, |f'| <~ 1, estimated"
    assert str([activations.relu]) == "[relu: max(x, 0), |f'| <= 1, kinks at 0]"


def test_parameters_by_position_and_by_keyword():
    assert parse("leaky_relu(0.2)") is activations.leaky_relu(0.2)
    assert parse(" elu ( alpha = 0.5 ) ") is activations.elu(alpha=0.5)
    assert parse("elu()") is parse("elu") is activations.elu()
    assert parse("softplus(2e0)").name == "softplus(2)"
    assert parse("leaky_relu(0.01)").name == "leaky_relu"
    assert activations.swish() is activations.swish(1) is activations.silu


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rellu", "did you mean relu"),
        ("leakyrelu(0.2)", "did you mean leaky_relu"),
        ("ReLU", "did you mean relu"),
        ("xyzzy", r"unknown activation 'xyzzy': activations.names\(\)"),
        ("", "written 'name'"),
        ("relu(", "written 'name'"),
        ("leaky_relu(0.2", "written 'name'"),
        ("elu(print(1))", "written 'name'"),
        ("relu(1)", "relu takes no parameters"),
        ("leaky_relu(0.2, 0.3)", r"takes 1 parameter \(a\)"),
        ("elu(beta=1)", "no parameter 'beta'; it has alpha"),
        ("elu(1, alpha=1)", "given twice"),
        ("elu(one)", "`alpha` of elu must be a number, got 'one'"),
        ("elu(,)", "must be a number"),
        ("softplus(-1)", r"`beta` of softplus must be a number in \[0.001, 1000\], got -1"),
        ("swish(nan)", "`beta` of swish must be"),
        ("squareplus(0)", "`b` of squareplus must be"),
        ("leaky_relu(inf)", "`a` of leaky_relu must be"),
        ("celu(1e9)", "`alpha` of celu must be"),
        ("__import__('os')", "written 'name'|unknown activation"),
    ],
)
def test_bad_text_is_refused_with_the_rule_and_the_remedy(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize("value", [None, 1, activations.relu])
def test_only_text_is_parsed(value):
    with pytest.raises(TypeError, match="must be a string"):
        parse(value)


@pytest.mark.parametrize("value", ["0.2", None, True, [0.2]])
def test_parameters_are_python_numbers(value):
    with pytest.raises(TypeError, match="`a` of leaky_relu must be a Python number"):
        activations.leaky_relu(value)
