"""Rules of fields: by name, for every study alike; refusals say field, rule and value."""

import math
import re
from dataclasses import dataclass
from typing import Any

import pytest

from jaxact.activations import relu, tanh
from train import fields
from train.optimizers import Sgd


@dataclass(frozen=True, kw_only=True)
class Some:
    """Fields of studies, all of them good."""

    activations: Any = (relu, tanh)
    depths: Any = (1, 4)
    max_depth: Any = None
    seeds: Any = (0, 2**31 - 1)
    width: Any = 1
    batch_size: Any = 1
    num_steps: Any = 20
    measure_every: Any = 10
    num_evaluate: Any = 1
    num_probes: Any = 1
    ascent_steps: Any = 1
    learning_rate: Any = 0.1
    learning_rates: Any = (0.1, 0.2)
    sigma_w: Any = None
    sigma_b: Any = 0.0
    threshold: Any = 1.0
    optimizer: Any = Sgd(warmup_steps=19)
    unruled: Any = -1


def test_what_keeps_the_rules_passes():
    fields.check(Some())
    fields.check(Some(max_depth=4, sigma_w=1.5, threshold=1e-3, sigma_b=2.0))


COUNTS = ("width", "batch_size", "num_steps", "measure_every", "num_evaluate", "num_probes", "ascent_steps")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *((name, value, f"must be a positive integer, got {value}") for name in COUNTS for value in (0, -3)),
        ("activations", (), "must hold at least one value, got none"),
        ("activations", (relu, tanh, relu), "must not repeat a value, got relu twice"),
        ("depths", (4, 0), "must be positive integers, got 0. Use 1 for a single stage"),
        ("depths", (), "must hold at least one value"),
        ("depths", (2, 2), "must not repeat a value, got 2 twice"),
        ("seeds", (-1,), "must lie between 0 and 2**31 - 1, got -1"),
        ("seeds", (2**31,), "must lie between 0 and 2**31 - 1, got 2147483648"),
        ("seeds", (1, 1), "must not repeat a value, got 1 twice"),
        ("learning_rate", 0.0, "must be positive and finite, got 0.0"),
        ("learning_rates", (0.1, math.nan), "must be positive and finite, got nan"),
        ("learning_rates", (0.1, 0.1), "must not repeat a value, got 0.1 twice"),
        ("learning_rates", (), "must hold at least one value"),
        ("sigma_w", -1.0, "must be positive and finite, got -1.0"),
        ("sigma_w", math.inf, "must be positive and finite, got inf"),
        ("sigma_b", -0.1, "must be finite and not negative, got -0.1"),
        ("sigma_b", math.nan, "must be finite and not negative, got nan"),
        ("threshold", 0.0, "is an accuracy in (0, 1], got 0.0"),
        ("threshold", 1.1, "is an accuracy in (0, 1], got 1.1"),
    ],
)
def test_a_field_that_breaks_its_rule_is_named_with_its_value(name, value, message):
    with pytest.raises(ValueError, match="^" + re.escape(f"`{name}` {message}")):
        fields.check(Some(**{name: value}))


def test_depths_fit_the_stack():
    with pytest.raises(
        ValueError, match=r"^`depths` must not exceed max_depth = 3, got 4\. Raise --max-depth"
    ):
        fields.check(Some(max_depth=3))


@pytest.mark.parametrize(("num_steps", "use"), [(25, 20), (19, 10), (7, 10)])
def test_the_period_divides_the_budget_or_a_budget_is_named_that_it_divides(num_steps, use):
    message = rf"^`measure_every` must divide num_steps = {num_steps}, got 10\. Use --num-steps {use}\.$"
    with pytest.raises(ValueError, match=message):
        fields.check(Some(num_steps=num_steps, optimizer=Sgd()))


def test_a_warm_up_fits_the_budget():
    with pytest.raises(
        ValueError, match=r"^`optimizer\.warmup_steps` must be less than num_steps = 20, got 20"
    ):
        fields.check(Some(optimizer=Sgd(warmup_steps=20)))


def test_a_study_brings_rules_of_its_own():
    with pytest.raises(ValueError, match=r"^`unruled` must be at least 2, got -1\. Use two\.$"):
        fields.check(Some(), unruled=fields.at_least(2, "Use two."))
    fields.check(Some(threshold=5), threshold=lambda name, value: None)  # in place of the common one


def test_names_are_among_those_known_or_the_closest_is_offered():
    rule = fields.among(("sgd", "adam", "lion"))
    rule("kind", "sgd")
    rule("kind", ("sgd", "lion"))
    for given, message in (
        ("adma", "`kind` must be among sgd, adam, lion, got 'adma'. Did you mean 'adam'?"),
        (("sgd", "lino"), "`kind` must be among sgd, adam, lion, got 'lino'. Did you mean 'lion'?"),
        ("zzz", "`kind` must be among sgd, adam, lion, got 'zzz'."),
        (("sgd", "sgd"), "`kind` must not repeat a value, got sgd twice."),
        ((), "`kind` must hold at least one value, got none."),
        ("", "`kind` must be among sgd, adam, lion, got ''."),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
            rule("kind", given)
