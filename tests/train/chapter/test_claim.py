"""A claim's numbers are stored with their verdicts, and what it forgot is said."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from train import results
from train.config import ConfigError
from train.experiments.chapter import claim as base
from train.experiments.chapter.claim import Claim, Number
from train.experiments.chapter.verdict import CORRECTED, FAILS, HOLDS, UNDECIDED, judge
from train.experiments.chapter.verdict import Number as Declared
from train.study import Coordinate, Variable


@dataclass(frozen=True, kw_only=True)
class Toy(Claim):
    """Return what one is told."""

    told: dict[str, Any] = field(default_factory=dict)
    predictions: dict[str, Number] = field(default_factory=dict)

    number, title = 1, "A toy"

    def numbers(self):
        return self.predictions

    def measure(self, cell, progress):
        return self.told


PREDICTIONS = {
    "first": Number("the first", chapter=1.0, exact=1.0, tolerance=0.5),
    "second": Number("the second", chapter=2.0, tolerance=0.1, core=False, units="nats"),
}


def run(told, predictions=PREDICTIONS, kind=Toy):
    study = kind(told=told, predictions=predictions, seeds=tuple(range(5)))
    (cell,) = study.cells()
    return study.run(cell, progress=lambda fraction, note="": None)


def test_numbers_are_stored_as_declared_and_as_measured():
    result = run({"first": np.linspace(0.9, 1.1, 5), "second": 3.0})
    results.check_structure(result)
    assert result["number"].to_numpy().tolist() == ["first", "second"]
    assert result["predicted"].to_numpy().tolist() == [1.0, 2.0]
    assert np.isnan(result["exact"].sel(number="second"))
    assert result["num_draws"].to_numpy().tolist() == [5, 0]
    assert result["draws"].sel(number="second").to_numpy()[0] == 3.0
    assert base.claim_verdict(result) == CORRECTED
    assert base.deciding(result)["says"].item() == "the second"


def test_the_table_says_predicted_tolerance_exact_measured_and_verdict():
    (table,) = Toy.tables(run({"first": np.linspace(0.9, 1.1, 5), "second": 3.0})).values()
    assert table["measured"].tolist() == ["1 [0.902, 1.1]", "3"]
    assert table["number"].tolist() == ["the first", "the second (nats)"]
    assert table["tolerance"].tolist() == ["\N{PLUS-MINUS SIGN} 0.5", "\N{PLUS-MINUS SIGN} 0.1"]
    assert table["verdict"].tolist() == [HOLDS, f"{FAILS} (finer point)"]


def test_the_stored_draws_give_the_stored_verdicts():
    result = run({"first": np.array([1.0, np.nan, 1.0, 1.0, np.nan]), "second": 2.05})
    for place in range(2):
        one = result.isel(number=place)
        fields = {name: one[name].item() for name in ("says", "relation", "tolerance", "core")}
        draws = (
            one["draws"].to_numpy()[: one["num_draws"].item()]
            if one["num_draws"]
            else one["draws"].to_numpy()[0]
        )
        found = judge(Declared(chapter=one["predicted"].item(), **fields), draws)
        assert (found.verdict, found.reason) == (one["verdict"].item(), one["reason"].item())


def test_a_number_that_was_not_measured_is_named():
    with pytest.raises(ConfigError, match=r"must measure all of its numbers; \['second'\]"):
        run({"first": 1.0})


def test_a_variable_with_the_name_of_a_number_is_refused():
    class Clashing(Toy):
        variables = {"first": Variable("x", ("seed",)), "low": Variable("y", ("seed",))}

    with pytest.raises(ConfigError, match=r"names of numbers: \['first', 'low'\]"):
        run({"first": 1.0, "second": 1.0}, kind=Clashing)


def test_variables_for_figures_lie_beside_the_numbers():
    class Drawn(Toy):
        coordinates = {"point": Coordinate("point", first=0)}
        variables = {"height": Variable("height", ("seed", "point"))}

    result = run({"first": 1.0, "second": 2.0, "height": np.ones((5, 3))}, kind=Drawn)
    results.check_structure(result)
    assert result["height"].dims == ("seed", "point")
    assert list(Drawn.figures(result)) == ["height"]


def test_smoke_keeps_the_seeds():
    assert Toy(seeds=(3, 4, 5, 6, 7)).smoke().seeds == (3, 4, 5, 6, 7)


def test_with_too_few_seeds_nothing_is_decided_not_even_the_best_of_all():
    study = Toy(told={"first": 1.0, "second": 3.0}, predictions=PREDICTIONS, seeds=(1, 2))
    result = study.run(study.cells()[0], progress=lambda fraction, note="": None)
    assert result["verdict"].to_numpy().tolist() == [UNDECIDED] * 2
    assert result["reason"].to_numpy().tolist() == ["2 seeds cannot be judged: 5 are needed"] * 2
    assert base.claim_verdict(result) == UNDECIDED
