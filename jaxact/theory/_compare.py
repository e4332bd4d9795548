"""Which activation and initialisation keep signals and gradients over many layers, ranked."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxact.activations import Activation
from jaxact.errors import ArgumentError
from jaxact.numerics import check_count
from jaxact.theory._course import SIMILAR, Course, follow
from jaxact.theory._initialization import gain
from jaxact.theory._phase import MeanField, critical_point
from jaxact.theory._shaping import shape
from jaxact.theory._spectra import jacobian_spectrum

Law = Literal["gaussian", "orthogonal"]
Method = Literal["dks", "tat"]
LAWS: tuple[Law, ...] = ("gaussian", "orthogonal")
METHODS: tuple[Method, ...] = ("dks", "tat")

_LEFT_AT_LEAST = 1e-12  # rounding of correlations near 1 hides what is smaller
_GONE = 0.01
_AT_CRITICALITY = 1e-6
_SAME_SCALE = 1e-9
_DEEPEST = 10_000
_HABITS = {"lecun": 1.0, "pytorch": 3**-0.5}


class Prediction(NamedTuple):
    """What one initialisation does to a plain network h' = W f(h) + b at infinite width.

    Attributes:
        activation: as it was given.
        shaping: the method of `theory.shape` that f is made from it by, or None for f itself.
        initialisation: names, because different rules may agree: "variance-preserving", "critical", "lecun", "pytorch",
            or the shaping.
        weights: "gaussian" or "orthogonal".
        depth: number of layers, L.
        sigma_w: sigma_w^2 is fan_in times the weights' variance.
        sigma_b: bias scale.
        q_star: second moment of the preactivations at the fixed point that unit ones reach.
        chi: growth of squared gradients a layer there.
        phase: as in `MeanField`.
        c_star: correlation that two inputs tend to; NaN where nothing is left to correlate.
        xi_c: layers over which correlations settle e-fold.
        xi_gradient: layers over which squared gradients change e-fold.
        q_end: second moment after L layers, starting at 1.
        growth_decades: log10 of the growth of a squared gradient through L layers.
        correlation_end: of a pair of inputs without correlation, after L layers.
        contrast_left: share that is left of the difference between a similar pair of inputs (correlation 0.9) and an
            unrelated one (0).
        contrast_depth: the layer after which less than 1 % of it is left, or None.
        zero_probability: share of singular values of the Jacobian that are 0.
        largest_over_rms: its largest singular value over the root mean square.
        gradient_decades: |log10 of the growth of a gradient's norm|.
        input_decades: -log10 of `contrast_left`, at most 12.
        conditioning_decades: log10 of `largest_over_rms`.
    """

    activation: Activation
    shaping: Method | None
    initialisation: tuple[str, ...]
    weights: Law
    depth: int
    sigma_w: float
    sigma_b: float
    q_star: float
    chi: float
    phase: str
    c_star: float
    xi_c: float
    xi_gradient: float
    q_end: float
    growth_decades: float
    correlation_end: float
    contrast_left: float
    contrast_depth: int | None
    zero_probability: float
    largest_over_rms: float
    gradient_decades: float
    input_decades: float
    conditioning_decades: float

    @property
    def score(self) -> float:
        """Decades lost over the depth, lower is better: the sum of the three; inf where signals overflow or vanish."""
        return self.gradient_decades + self.input_decades + self.conditioning_decades


class Missing(NamedTuple):
    """An initialisation that does not exist for an activation.

    Attributes:
        activation: as it was given.
        initialisation: its name.
        sigma_b: bias scale that was asked for.
        error: that says why, without its traceback.
    """

    activation: Activation
    initialisation: str
    sigma_b: float
    error: ValueError


class Comparison(NamedTuple):
    """Every way to start a network, best first.

    Attributes:
        ranking: by score.
        missing: what does not exist.
    """

    ranking: tuple[Prediction, ...]
    missing: tuple[Missing, ...]


def compare(
    activations: Sequence[Activation],
    *,
    depth: int = 64,
    sigma_b: Sequence[float] = (0.0,),
    weights: Sequence[Law] = LAWS,
    shaping: Sequence[Method] = METHODS,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Rank activations and every way to initialise them by what `depth` layers lose, at infinite width.

        score = |log10 of a gradient norm's growth| - log10 of the difference left between inputs
                + log10 of the Jacobian's largest singular value over the rms one

    in decades, lower is better; see `predict` for each of them and how exact it is, and `Prediction` for the numbers.

    Args:
        activations: those to compare.
        depth: number of layers, 1 to 10000.
        sigma_b: bias scales of the critical initialisations.
        weights: laws of the weights.
        shaping: methods of `theory.shape` to try as well.
        progress: called with each activation's name before it is looked at.

    Returns:
        A `Comparison`; computed in float64 on the host.

    Raises:
        ValueError: as `predict`.

    Example:
        >>> from jaxact import activations
        >>> found = compare([activations.relu, activations.tanh], depth=8, shaping=())
        >>> best = found.ranking[0]
        >>> best.activation.name, best.initialisation, best.weights
        ('tanh', ('critical',), 'orthogonal')
    """
    rows: list[Prediction] = []
    missing: list[Missing] = []
    for activation in activations:
        if progress is not None:
            progress(activation.name)
        found = predict(activation, depth=depth, sigma_b=sigma_b, weights=weights, shaping=shaping)
        rows += found.ranking
        missing += found.missing
    return Comparison(_ranked(rows), tuple(missing))


def predict(
    activation: Activation,
    *,
    depth: int = 64,
    sigma_b: Sequence[float] = (0.0,),
    weights: Sequence[Law] = LAWS,
    shaping: Sequence[Method] = METHODS,
) -> Comparison:
    """Predict what each initialisation does to a plain network h' = W f(h) + b at infinite width.

    The network starts at second moment 1 of the preactivations. The ways:

        variance-preserving  `gain`, no bias
        critical             `critical_point` at each sigma_b
        lecun, pytorch       sigma_w = 1 and 1 / sqrt(3), no bias; Gaussian weights only: the law of independent weights
                             does not matter at infinite width, and PyTorch's bias is negligible there
        dks, tat             `shape`, the activation between affine maps; sigma_w = 1, no bias

    Second moments and gradients are exact to quadrature, about 1e-12; correlations as `follow` says; the spectrum is
    that of the middle layer's second moment in every layer, an approximation away from the fixed point.

    Args:
        activation: an `Activation`.
        depth: number of layers, 1 to 10000.
        sigma_b: bias scales of the critical initialisations.
        weights: laws of the weights.
        shaping: methods of `theory.shape` to try as well.

    Returns:
        A `Comparison` of this activation alone: a `Prediction` an initialisation and law of the weights, best first,
        and a `Missing` for each initialisation that does not exist.

    Raises:
        ValueError: `depth` is out of its range, or a law or method is unknown.

    Example:
        >>> from jaxact import activations
        >>> he, *_ = predict(activations.relu, depth=8, weights=("orthogonal",), shaping=()).ranking
        >>> he.initialisation, round(he.chi, 6)
        (('variance-preserving', 'critical'), 1.0)
    """
    depth = check_count("depth", depth, most=_DEEPEST)
    _check_some("weights", weights, LAWS)
    _check_some("shaping", shaping, METHODS)
    starts, missing = _starts(activation, sigma_b)
    if all(law == "orthogonal" for law in weights):
        starts = [start for start in starts if not start.is_habit]
    # One shape, hence one compiled program an activation, however many rules exist.
    rows = _rows(activation, None, starts, depth, weights, size=3 + len(sigma_b))
    for method in dict.fromkeys(shaping):
        try:
            rows += _shaped_rows(activation, method, depth, weights)
        except ValueError as error:
            missing.append(_absent(activation, method, 0.0, error))
    return Comparison(_ranked(rows), tuple(missing))


def _ranked(rows: Sequence[Prediction]) -> tuple[Prediction, ...]:
    return tuple(sorted(rows, key=lambda row: (row.score, row.activation.name)))  # no score is NaN


def _check_some(argument: str, given: Sequence[str], known: Sequence[str]) -> None:
    wrong = [each for each in ((given,) if isinstance(given, str) else given) if each not in known]
    if wrong or isinstance(given, str):
        raise ArgumentError(
            f"must be some of {known} in a sequence, got {given!r}.",
            "Leave it out for all.",
            argument=argument,
        )


def _absent(activation: Activation, name: str, sigma_b: float, error: ValueError) -> Missing:
    return Missing(activation, name, sigma_b, error.with_traceback(None))


# --- Ways to draw the weights ---------------------------------------------------------------------------------


class _Start(NamedTuple):
    """A way to draw the weights: names, because different rules may agree."""

    names: tuple[str, ...]
    sigma_w: float
    sigma_b: float
    is_habit: bool


def _rules(activation: Activation, sigma_b: Sequence[float]) -> list[tuple[str, float, Callable[[], float]]]:
    """(name, sigma_b, what gives sigma_w)."""

    def critical(b: float) -> float:
        return float(critical_point(activation, sigma_b=b).sigma_w)

    return [
        ("variance-preserving", 0.0, partial(gain, activation)),
        *(("critical", b, partial(critical, b)) for b in dict.fromkeys(map(float, sigma_b))),
        *((name, 0.0, partial(float, scale)) for name, scale in _HABITS.items()),
    ]


def _starts(activation: Activation, sigma_b: Sequence[float]) -> tuple[list[_Start], list[Missing]]:
    starts: list[_Start] = []
    missing = []
    for name, b, scale in _rules(activation, sigma_b):
        try:
            _add(starts, _Start((name,), scale(), b, name in _HABITS))
        except ValueError as error:
            missing.append(_absent(activation, name, b, error))
    return starts, missing


def _add(starts: list[_Start], new: _Start) -> None:
    """Add a start, or its name to that of the same scales."""
    for place, other in enumerate(starts):
        if other.sigma_b == new.sigma_b and abs(other.sigma_w / new.sigma_w - 1) < _SAME_SCALE:
            starts[place] = other._replace(names=(*other.names, *new.names))
            return
    starts.append(new)


def _named(start: _Start, law: Law) -> _Start:
    """A start by the names that are those of a law: habits draw Gaussian weights alone."""
    if law == "gaussian":
        return start
    return start._replace(names=tuple(name for name in start.names if name not in _HABITS))


# --- What they do ---------------------------------------------------------------------------------------------


def _shaped_rows(
    activation: Activation, method: Method, depth: int, weights: Sequence[Law]
) -> list[Prediction]:
    shaped = shape(activation, depth, method=method)
    rows = _rows(shaped, method, [_Start((method,), 1.0, 0.0, False)], depth, weights, size=1)
    return [row._replace(activation=activation) for row in rows]


def _rows(
    activation: Activation,
    shaping: Method | None,
    starts: Sequence[_Start],
    depth: int,
    weights: Sequence[Law],
    *,
    size: int,
) -> list[Prediction]:
    """One row a start and law of the weights; the starts are computed as `size` of them."""
    if not starts:
        return []
    sigmas_w = np.resize([start.sigma_w for start in starts], size)
    sigmas_b = np.resize([start.sigma_b for start in starts], size)
    field, course = follow(activation, depth, sigmas_w, sigmas_b)
    rows = []
    for index, start in enumerate(starts):
        limit = MeanField(*(float(each[index]) for each in field))  # type: ignore[arg-type]
        way = Course(*(each[:, index] for each in course))
        for law in dict.fromkeys(weights):
            if law == "gaussian" or not start.is_habit:
                rows.append(_prediction(activation, shaping, _named(start, law), law, limit, way))
    return rows


def _prediction(
    activation: Activation, shaping: Method | None, start: _Start, law: Law, limit: MeanField, way: Course
) -> Prediction:
    depth, q = len(way.chi), way.q
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = float(np.log10(way.chi).sum())
        left = np.abs(way.c[:, 1] - way.c[:, 0]) / SIMILAR
    is_finite = bool(np.isfinite(q).all() and np.isfinite(left).all() and not math.isnan(growth))
    gone = np.nonzero(left < _GONE)[0] if is_finite else np.array([], int)
    largest, zero = _conditioning(activation, start.sigma_w, law, way)
    return Prediction(
        activation=activation,
        shaping=shaping,
        initialisation=start.names,
        weights=law,
        depth=depth,
        sigma_w=start.sigma_w,
        sigma_b=start.sigma_b,
        **_at_fixed_point(limit),
        q_end=float(q[-1]),
        growth_decades=growth,
        correlation_end=float(way.c[-1, 0]),
        contrast_left=float(left[-1]),
        contrast_depth=int(gone[0]) if len(gone) else None,
        zero_probability=zero,
        largest_over_rms=largest,
        gradient_decades=abs(growth) / 2 if is_finite else math.inf,
        input_decades=max(-math.log10(max(left[-1], _LEFT_AT_LEAST)), 0.0) if is_finite else math.inf,
        conditioning_decades=math.log10(largest) if math.isfinite(largest) else math.inf,
    )


def _at_fixed_point(limit: MeanField) -> dict[str, Any]:
    """The fields of the limit, where rounding does not decide them."""
    q_star, chi = float(limit.q_star), float(limit.chi)
    is_critical = abs(chi - 1) < _AT_CRITICALITY
    # Where signals vanish, q has no limit on whose scale the correlations could settle.
    is_lost = q_star == 0 and not is_critical
    return {
        "q_star": q_star,
        "chi": chi,
        "phase": limit.phase,
        "c_star": math.nan if q_star == 0 else float(limit.c_star),
        # At chi = 1 rounding decides between a large number of either sign and infinity.
        "xi_c": math.inf if is_critical else math.nan if is_lost else float(limit.xi_c),
        "xi_gradient": math.inf if is_critical else float(limit.xi_gradient),
    }


def _conditioning(activation: Activation, sigma_w: float, law: Law, way: Course) -> tuple[float, float]:
    """The largest singular value over the rms one, and the share of zeros, at the middle layer's q."""
    depth = len(way.chi)
    q, chi = float(way.q[depth // 2]), float(way.chi[depth // 2])
    if not (q > 0 and chi > 0):  # vanished, in floating point too: no singular values are left
        return math.nan, math.nan
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # of moments that are not asked for
            spectrum = jacobian_spectrum(
                activation, depth, sigma_w=sigma_w, q=q, weights=law, log_eigenvalues=np.zeros(1)
            )
    except (ValueError, FloatingPointError):  # no finite q, no slope, or an equation that does not close
        return math.nan, math.nan
    zero = float(spectrum.atom_masses[spectrum.atom_locations == 0].sum())
    return float(np.exp((spectrum.log_lambda_max - depth * math.log(chi)) / 2)), zero
