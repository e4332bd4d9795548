"""Non-monotonicity: what one unit of each activation makes of swish, against what no monotone function can beat."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import xarray as xr
from scipy.special import expit

from jaxact import activations
from train.experiment import Cell, Progress
from train.experiments.chapter.claim import Claim, Number
from train.experiments.chapter.exercise import Exercise
from train.study import Coordinate, Variable
from train.units import best_units

INTERVALS = {"[−5, 5]": (-5.0, 5.0), "[−5, 0]": (-5.0, 0.0)}
CURVES = ("swish", "any monotone", "relu", "mish")
SHOWN = ("silu", "mish", "gelu", "cos", "abs", "relu", "elu", "tanh", "any monotone")
ZOO = tuple(dict.fromkeys(map(activations.parse, activations.names())))  # a function has several names


def swish(x: np.ndarray) -> np.ndarray:
    """The data: x / (1 + exp(-x)), by scipy."""
    return x * expit(x)


def monotone_fit(y: np.ndarray, rising: tuple[bool, ...] = (True, False)) -> np.ndarray:
    """The monotone sequence nearest to y in the mean square, rising or falling: isotonic regression."""
    from sklearn.isotonic import IsotonicRegression

    fits = [IsotonicRegression(increasing=each).fit_transform(np.arange(len(y)), y) for each in rising]
    return min(fits, key=lambda fit: np.mean((fit - y) ** 2))


@dataclass(frozen=True, kw_only=True)
class SwishFit(Claim):
    """Fit one unit c f(a x + b) + d of every activation to swish; of all starts of all seeds the best counts.

    Attributes:
        num_starts, num_steps: a seed; of the descent.
        num_points, num_fine: the data, evenly spaced; midpoints, on which the bound is that of the interval.
    """

    num_starts: int = 64
    num_steps: int = 40
    num_points: int = 200
    num_fine: int = 10_000

    number = 9
    title = "Swish needs a unit that is not monotone"
    says = "Swish falls before it rises: a unit with such a dip fits data that no monotone activation's unit can."
    formula = "min over a, b, c, d of mean (c f(a x + b) + d − swish(x))², beside the nearest monotone f"
    practice = (
        "Test such a claim where the dip is: over [−5, 5] it is 0.1 % of the variance, and relu explains 99.8 %. "
        "A dip is no merit by itself: abs, cos and gaussian lose to relu there."
    )
    source = "Ramachandran, Zoph & Le (2017), Searching for activation functions; Barlow et al. (1972)"
    coordinates = {
        "interval": Coordinate("inputs", labels=tuple(INTERVALS)),
        "unit": Coordinate("activation of the unit"),
        "curve": Coordinate("function", labels=CURVES),
        "x": Coordinate("x"),
    }
    variables = {
        "missed": Variable("share of swish's variance that the best unit misses", ("interval", "unit")),
        "fit": Variable("best fit to swish on [−5, 0]", ("curve", "x")),
    }

    def smoke(self) -> Self:
        """Fewer starts and steps; the bounds are as they were."""
        return self.shrunk(num_starts=4, num_steps=10)

    def numbers(self) -> dict[str, Number]:
        """Exact: by quadrature, with where the nearest function turns flat as a root; on 200 points by trying all."""
        bound, floor = partial(Number, tolerance=5e-6), partial(Number, relation="at_least", tolerance=1e-9)
        at_most, over = partial(Number, chapter=1.0, relation="at_most"), "MSE over the monotone least"
        return {
            "narrow_bound": bound("least MSE of a monotone function on [−5, 0]", 2.19e-3, 2.1902800e-3),
            "narrow_r2": Number("R² of the best monotone one, [−5, 0]", 0.688, 0.6880718, tolerance=5e-4),
            "narrow_bound_200": bound("the least on 200 points of [−5, 0]", 2.30e-3, 2.3016351e-3),
            "silu": Number("MSE of silu's unit on [−5, 0]", 0.0, 0.0, tolerance=1e-12),
            "mish": Number("MSE of mish's unit on [−5, 0]", 9e-7, tolerance=5e-8),
            "narrow_monotone": floor(f"{over}: best monotone unit, [−5, 0]", 1.0),
            "narrow_other": at_most(f"{over}: worst other unit, [−5, 0]"),
            "wide_bound": bound("least MSE of a monotone function on [−5, 5]", 3.21e-3, 3.2137657e-3),
            "wide_relu_r2": Number("R² of relu's unit on [−5, 5]", 0.998, tolerance=5e-4),
            "wide_monotone": floor(f"{over}: best monotone unit, [−5, 5]", 1.0),
            "wide_other": at_most(f"{over}: worst other unit, [−5, 5]", core=False),
        }

    def measure(self, cell: Cell, progress: Progress) -> dict[str, Any]:
        """Fit every activation on both intervals."""
        middles = (np.arange(self.num_fine) + 0.5) / self.num_fine
        fine = swish(np.stack([low + (high - low) * middles for low, high in INTERVALS.values()]))
        bound = [np.mean((monotone_fit(y) - y) ** 2) for y in fine]
        x = np.stack([np.linspace(*ends, self.num_points) for ends in INTERVALS.values()])
        y = swish(x)
        nearest = np.stack([monotone_fit(each) for each in y])
        said = {name: getattr(self, name) for name in ("seeds", "num_starts", "num_steps")}
        fits = np.concatenate([best_units(ZOO, x, y, **said), nearest[:, None]], 1)
        errors = np.mean((fits - y[:, None]) ** 2, -1)
        missed, over = errors / y.var(1, keepdims=True), errors[:, :-1] / errors[:, -1:]
        is_monotone = np.array([f.monotone for f in ZOO])
        names = [*(f.name for f in ZOO), CURVES[1]]
        return {
            **dict(zip(("wide_bound", "narrow_bound"), bound, strict=True)),
            **dict(zip(("wide_monotone", "narrow_monotone"), over[:, is_monotone].min(1), strict=True)),
            **dict(zip(("wide_other", "narrow_other"), over[:, ~is_monotone].max(1), strict=True)),
            "narrow_r2": 1 - bound[1] / fine[1].var(),
            "narrow_bound_200": errors[1, -1],
            "wide_relu_r2": 1 - missed[0, names.index("relu")],
            **{name: errors[1, names.index(name)] for name in ("silu", "mish")},
            **{"missed": missed, "unit": names, "x": x[1]},
            "fit": [y[1], *(fits[1, names.index(name)] for name in CURVES[1:])],
        }

    @classmethod
    def figures(cls, result: xr.Dataset) -> Mapping[str, Any]:
        """What units miss, and what it looks like where swish has its dip."""
        bars: dict[str, Any] = {"mark": "bars", "x": "unit", "row": "interval", "column": None, "choices": {}}
        missed = "Over [−5, 0] monotone units miss a third. Last: what every monotone function misses."
        dip = "A monotone function has to choose one side of the dip. Mish lies on swish."
        some = result.sel(unit=list(SHOWN))
        return {
            "missed": cls.figure(some, "missed", **bars, format=".0%", caption=missed),
            "dip": cls.figure(result, "fit", series="curve", choices={}, caption=dip),
        }

    exercise = Exercise(
        task="Write `monotone_fit(y)`: of all monotone sequences, rising or falling, the one nearest to the numbers y "
        "in the mean square. On swish over [−5, 0] its mean squared error is the bound of this claim.",
        function="monotone_fit",
        answer=monotone_fit,
        inputs=(
            (swish(np.linspace(-5, 0, 200)),),
            (np.array([3.0, 1.0, 2.0]),),
            (np.array([1.0, 3.0, 2.0]),),
        ),
        mistakes={
            f"A {other} sequence is monotone too: keep the nearer.": partial(monotone_fit, rising=(one,))
            for other, one in {"falling": True, "rising": False}.items()
        },
        solution=f"import numpy as np\n\n\n{inspect.getsource(monotone_fit)}",
    )
