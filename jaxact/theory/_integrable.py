"""How an activation is integrated against Gaussians: where panels split, how far tails reach, what is refused."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxact.numerics import gaussian_nodes_on_host

# Where an activation is looked at: not at 0, where a user's derivative may have no value; and far out.
_SAMPLES = np.linspace(-10.0, 10.0, 2000)
_FAR = 10.0 ** np.arange(2, 7)
# Where its growth is looked at, on either side; between neighbours a cube may grow by 8.
_DOUBLING = 2.0 ** np.arange(-3, 11)
_SUDDEN = 64.0
# What quadrature may miss of E f^2, E f'^2, E f'^4. Activations are either resolved to 1e-13 or lost.
_MISSED = 1e-8
_DEVIATIONS = 2.0 ** np.arange(-10, 21)
_MEANS = 4.0 ** np.arange(-2, 11)
_MANY = 100  # kinks: nodes in the plane grow with their square, to some 700 MB at this number


def breakpoints(activation: Any) -> tuple[float, ...]:
    """Return where integrals over the activation are to be split, having looked whether it is one."""
    points = _points(activation)
    if points is None or not callable(getattr(activation, "derivative", None)):
        raise TypeError(
            f"`activation` must know its kinks and its derivative, got {activation!r}. "
            "Use one of jaxact.activations, or wrap yours with activations.from_callable(fn, name=...)."
        )
    _looked_at(activation)
    return tuple(points)


def _points(activation: Any) -> tuple[float, ...] | None:
    return getattr(activation, "breakpoints", getattr(activation, "kinks", None))


def grows_fast(activation: Any) -> bool:
    """Whether f or f' grows faster than a cube: its integrals then reach further out."""
    return _looked_at(activation).grows_fast


class Resolution(NamedTuple):
    """Up to where the panels of `gaussian_nodes` resolve an activation; all infinite for what does not oscillate.

    Attributes:
        deviation: the largest standard deviation for E f, E f^2, E f', E f'^2.
        deviation_of_fourth: the same for E f'^4.
        mean: the largest |mean| of such Gaussians.
    """

    deviation: float
    deviation_of_fourth: float
    mean: float


def resolution(activation: Any) -> Resolution:
    """The `Resolution` of an activation, found by halving the panels; a multiple of two may lack to what is true."""
    return _looked_at(activation).resolution


def nan_unless_resolved(activation: Any, variance: Any, mean: Any = 0.0, *, power: int = 2) -> Any:
    """A factor: 1, or an array of it with NaN where the activation's powers are not resolved."""
    limit = resolution(activation)
    deviation = limit.deviation if power == 2 else limit.deviation_of_fourth
    if math.isinf(deviation):
        return 1.0
    variance = jnp.asarray(variance)
    # A standard deviation squared, in float32, may be a little more.
    is_resolved = (variance <= deviation**2 * (1 + 1e-6)) & (jnp.abs(jnp.asarray(mean)) <= limit.mean)
    return jnp.where(is_resolved, 1, jnp.nan).astype(variance.dtype)


def refuse_unresolved(activation: Any, variance: float, *, power: int = 2) -> None:
    """Refuse an activation that oscillates too fast for a centred Gaussian of this variance."""
    limit = resolution(activation)
    if variance > (limit.deviation if power == 2 else limit.deviation_of_fourth) ** 2 * (1 + 1e-6):
        raise ValueError(_not_resolved(activation))


class _Look(NamedTuple):
    grows_fast: bool
    resolution: Resolution


@functools.lru_cache
def _looked_at(activation: Any) -> _Look:
    """Check that an activation is one, and find out how to integrate it. Everything in one compilation."""
    name = getattr(activation, "name", activation)
    for part, fn in (("activation", activation), ("derivative", activation.derivative)):
        shape = jax.eval_shape(fn, jax.ShapeDtypeStruct((2, 3), jnp.float32)).shape
        if shape != (2, 3):
            raise ValueError(
                f"`activation` must be elementwise, got {name}, whose {part} "
                f"makes shape {shape} of (2, 3). Return an array of the argument's shape."
            )
    samples = np.concatenate([_SAMPLES, -_FAR, _FAR])
    steps = np.stack([-_DOUBLING, _DOUBLING])
    grid = _Rules(activation, np.zeros_like(_DEVIATIONS), _DEVIATIONS)
    looked = value_and_slope(activation, np.concatenate([samples, steps.reshape(-1), grid.x]))
    grown = False
    for part, values in zip(("activation", "derivative"), looked, strict=True):
        at_samples = values[: samples.size]
        bad = samples[np.isnan(at_samples)]
        if bad.size:
            raise ValueError(
                f"`activation` must be a number everywhere, got {name}, whose "
                f"{part} is NaN at x = {bad[0]:.4g}. Choose a branch with jnp.where, guarding the unsafe one."
            )
        at_steps = values[samples.size : samples.size + steps.size].reshape(steps.shape)
        grown |= _is_fast(np.abs(at_samples), samples, np.abs(at_steps))
    squares, fourth = grid.errors(*(values[samples.size + steps.size :] for values in looked))
    deviation, of_fourth = (_last_good(each, _DEVIATIONS) for each in (squares, fourth))
    mean = math.inf
    if deviation == 0:
        mean = 0.0
    elif math.isfinite(deviation):
        means = np.concatenate([-_MEANS, _MEANS])
        grid = _Rules(activation, means, np.full_like(means, deviation))
        errors = grid.errors(*value_and_slope(activation, grid.x))[0]
        mean = min(_last_good(np.maximum(*np.split(errors, 2)), _MEANS), float(_MEANS[-1]))
    return _Look(grown, Resolution(deviation, min(of_fourth, deviation), mean))


def _is_fast(far: np.ndarray, x: np.ndarray, steps: np.ndarray) -> bool:
    """Whether |f| or |f'| outgrows a cube between 100 and 1000, or in some doubling of x by far.

    The latter as exp(min(x, 40)) does: flat far out, it is an exponential to the Gaussians that matter.
    """
    for side in (-1, 1):
        near, away = far[x == side * _FAR[0]][0], far[x == side * _FAR[1]][0]
        if (
            not (math.isfinite(near) and math.isfinite(away))
            or away > max(near, 1) * (_FAR[1] / _FAR[0]) ** 3
        ):
            return True
    if not np.isfinite(steps).all():
        return True
    return bool((steps[:, 1:] > np.maximum(steps[:, :-1], 1) * 8 * _SUDDEN).any())


def _last_good(errors: np.ndarray, places: np.ndarray) -> float:
    """The last place before the first error that is too large; inf if none is, 0 if the first is."""
    is_bad = errors > _MISSED
    if not is_bad.any():
        return math.inf
    first = int(np.argmax(is_bad))
    return float(places[first - 1]) if first else 0.0


class _Rules:
    """The nodes of `gaussian_nodes` for some Gaussians, each followed by those of the halved panels."""

    def __init__(self, activation: Any, means: np.ndarray, deviations: np.ndarray):
        points = _points(activation) or ()
        rules = [
            gaussian_nodes_on_host(points, mean, deviation, is_halved=is_halved)
            for mean, deviation in zip(means, deviations, strict=True)
            for is_halved in (False, True)
        ]
        self.weights = [weights for _, weights in rules]
        self.x = np.concatenate([x for x, _ in rules])

    def errors(self, value: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Relative errors of the panels as they are, 0 where not finite: the greater of E f^2 and E f'^2; of E f'^4."""
        cuts = np.cumsum([each.size for each in self.weights])[:-1]
        with np.errstate(all="ignore"):
            squares, slopes, fourth = (
                np.array([w @ y for w, y in zip(self.weights, np.split(each, cuts), strict=True)])
                for each in (value**2, slope**2, slope**4)
            )
            found = [
                np.nan_to_num(np.abs(each[::2] / each[1::2] - 1), nan=0.0)
                for each in (squares, slopes, fourth)
            ]
        return np.maximum(found[0], found[1]), found[2]


def value_and_slope(activation: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute f and f' in float64 on the host, under any trace.

    Compiled, once for an activation and a shape: vmap lets no custom rule be evaluated.
    """
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        value, slope = _value_and_slope(activation, jnp.asarray(x, jnp.float64))
        return np.asarray(value), np.asarray(slope)


@functools.partial(jax.jit, static_argnums=0)
def _value_and_slope(activation: Any, x: Array) -> tuple[Array, Array]:
    return activation(x), activation.derivative(x)


def refuse_fast_growth(activation: Any) -> None:
    """Refuse an activation whose tails count beyond ten standard deviations, where integrals do not reach further."""
    if grows_fast(activation):
        raise ValueError(
            f"`activation` must not grow faster than a cube here, got {getattr(activation, 'name', activation)}. "
            "Clip it; moments, variance_map, correlation_map, gain and mean_field do take it as it is."
        )


def refuse_many_kinks(activation: Any) -> None:
    """Refuse an activation with more breakpoints than panels in the plane have room for in memory."""
    count = len(breakpoints(activation))
    if count > _MANY:
        raise ValueError(
            f"`activation` must have at most {_MANY} kinks here, got {getattr(activation, 'name', activation)}, which "
            f"has {count}: integrals over pairs of inputs would not fit into memory. Clip it; moments and variance_map "
            "take it as it is."
        )


def refuse_nan(activation: Any, *results: Any) -> None:
    """Refuse an activation that has no Gaussian moments, where the results are concrete."""
    for result in results:
        if not isinstance(result, jax.core.Tracer) and np.isnan(np.asarray(result)).any():
            if math.isfinite(resolution(activation).deviation_of_fourth):
                raise ValueError(_not_resolved(activation))
            raise ValueError(
                f"`activation` must have finite Gaussian moments, got {getattr(activation, 'name', activation)}: "
                "at this mean and variance its tail outgrows the Gaussian. Use a smaller variance, float64, or clip "
                "it."
            )


def _not_resolved(activation: Any) -> str:
    limit = resolution(activation)
    if limit.deviation == 0:
        return (
            "`activation` and its slope must be square-integrable and smooth between breakpoints, got "
            f"{getattr(activation, 'name', activation)}, whose squares quadrature resolves for no Gaussian. State all "
            "its breakpoints; where the slope is infinite, as that of sqrt(|x|) at 0, bound it."
        )
    return (
        f"`activation` must be smooth on the scale of the Gaussian, got {getattr(activation, 'name', activation)}, "
        f"whose squares quadrature resolves up to a standard deviation of {limit.deviation:g} (fourth powers up to "
        f"{limit.deviation_of_fourth:g}) and a mean of {limit.mean:g}. Use a smaller variance, or state all its "
        "breakpoints."
    )
