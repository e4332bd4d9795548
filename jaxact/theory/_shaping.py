"""Activations bent by affine maps until the kernel of a deep plain network stays well behaved: DKS and TAT."""

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, ArrayLike, Float

from jaxact.activations import Activation, Interval, leaky_relu
from jaxact.numerics import check_count, gaussian_nodes
from jaxact.theory._integrable import breakpoints, nan_unless_resolved, refuse_fast_growth

# Where solutions are looked for: input scales b, and shifts c close together around 0, where activations bend.
_SCALES = np.geomspace(1e-3, 50, 48)
_SHIFTS = 20 * np.sinh(np.linspace(-6, 6, 48)) / math.sinh(6)
_DEEPEST = 10**6
_CHUNK = 64  # points evaluated by one call of the one compiled program
_LARGE = 700.0  # its exponential is finite
_NUM_LAST_RESORTS = 6
_NUM_STEPS = 14
_KURTOSIS = 30  # of what is not linear in phi, at most; a parabola has 15
_TOLERANCE = 1e-8  # on the conditions, each scaled to the size that it has without shaping


def shape(
    activation: Any,
    depth: int | np.integer,
    *,
    method: Literal["dks", "tat"] = "dks",
    zeta: float | None = None,
    tau: float | None = None,
    eta: float | None = None,
) -> Activation:
    """Transform an activation so that a plain network of `depth` layers trains like a shallow one.

        phi(x) = a (f(b x + c) + d),   a, b > 0

    for h' = W phi(h) with sigma_w = 1 and no bias: `initializers.orthogonal()` or N(0, 1 / fan_in), zero biases, and
    inputs of mean square 1. With Q(q) = E phi(sqrt(q) z)^2 and the correlation map C at q = 1 the four numbers solve

        "dks":  Q(1) = 1,  Q'(1) = 1,  C(0) = 0,   C'(1)^depth = zeta          (default zeta = 1.5)
        "tat":  Q(1) = 1,  Q'(1) = 1,  C'(1) = 1,  depth C''(1) = tau          (default tau = 0.3)

    where C(0) = (E phi)^2, Q'(1) = E z phi phi', C'(1) = E phi'^2, C''(1) = E phi''^2. The powers and the sum are the
    slope C_f'(1) and, as C'(1) = 1, the curvature C_f''(1) of the map composed `depth` times. "dks": Martens et al.
    2021, "Rapid training of deep neural networks without skip connections or normalization layers using Deep Kernel
    Shaping", arXiv:2110.01765; "tat": Zhang et al. 2022, "Deep Learning without Shortcuts: Shaping the Kernel with
    Tailored Rectifiers", arXiv:2203.08120.

    A rectifier makes b redundant, and its C'' is infinite at 1: affine maps alone do not meet the conditions. On
    a relu or leaky relu its slope alpha below 0 is chosen instead, as in the papers, and the slope that it had is
    forgotten:

        "dks":  phi(x) = a (max(x, 0) + alpha min(x, 0) + d),   all four conditions with 0 <= alpha < 1
        "tat":  phi(x) = sqrt(2 / (1 + alpha^2)) (max(x, 0) + alpha min(x, 0)),   C composed `depth` times takes 0 to
                eta (default 0.9)

    Solutions are not unique. They are looked for from a grid of b in [1e-3, 50] and |c| <= 20, and the one with the
    least a b, hence the least Lipschitz constant, is taken; of mirror images the one with c > 0. (A large a b has a
    flat part of f magnified: slopes grow as soon as preactivations leave it. The TAT paper's code refuses a b >= 2.)
    Solutions that are straight but for rare events in the tails, the part r of phi that is not linear having E r^4 >
    30 (E r^2)^2, come last: no finite width samples them. The choice may jump where depth changes ("tat" on gelu moves
    between depths 64 and 128 to x = 2.4, where gelu is almost straight). In float64 on the
    host whatever JAX's default precision, inside a trace too; the conditions, exact at infinite width, hold to about
    1e-12.

    Args:
        activation: an `Activation`, the user's own included. Static.
        depth: number of nonlinear layers in a chain; from 1 to a million.
        method: "dks" or "tat".
        zeta: for "dks", the network's slope C_f'(1); above 1.
        tau: for "tat" on all but rectifiers, the network's curvature C_f''(1); positive.
        eta: for "tat" on rectifiers, the network's C_f(0), in (0, 1).

    Returns:
        An `Activation` with the facts of f carried over. Its name, such as "dks(tanh, depth=16)", does not parse;
        it is pickled with all its fields. `fn` knows a, b, c, d as `output_scale`, `input_scale`, `input_shift`,
        `output_shift`, and f as `activation`. `argmin` is the image of f's, not always the nearest to 0 where f has
        several. The sum f + d cancels to about 1 / depth^(1/2) of its terms: expect as many more ulp of error.

    Raises:
        TypeError: `activation` does not know its kinks and derivative.
        ValueError: a number is out of its range or belongs to another method; f has kinks and "tat" needs f'';
            or no solution is found (the identity; a relu in a network too shallow for the target).

    Example:
        >>> from jaxact import activations
        >>> phi = shape(activations.relu, 50, method="tat")
        >>> round(float(phi(1.0) ** 2 + phi(-1.0) ** 2), 6), round(float(phi(-1.0) / phi(1.0)), 3)
        (2.0, -0.431)
    """
    points = breakpoints(activation)
    refuse_fast_growth(activation)
    depth = check_count("depth", depth, most=_DEEPEST)
    if method not in ("dks", "tat"):
        raise ValueError(f'`method` must be "dks" or "tat", got {method!r}. Pass one of these.')
    kinks = tuple(getattr(activation, "kinks", points))
    is_rectifier = kinks == (0.0,) and activation.homogeneous and activation.monotone
    wanted = "zeta" if method == "dks" else "eta" if is_rectifier else "tau"
    target = _target(activation, wanted, {"zeta": zeta, "tau": tau, "eta": eta})
    if is_rectifier:
        transform = _tailored_rectifier(depth, method, target)
    elif method == "tat" and kinks:
        raise ValueError(
            f"`method` = \"tat\" needs a finite C''(1), got {activation.name} with kinks at {kinks}. "
            'Use method="dks", or a rectifier, or a smooth activation.'
        )
    else:
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            transform = _solve(activation, depth, method, target)
    text = "" if target == _DEFAULTS[wanted] else f", {wanted}={target:g}"
    return _shaped(transform, f"{method}({activation.name}, depth={depth}{text})", _REFERENCES[method])


_DEFAULTS = {"zeta": 1.5, "tau": 0.3, "eta": 0.9}
_LIMITS = {"zeta": (1, math.inf), "tau": (0, math.inf), "eta": (0, 1)}
_REFERENCES = {
    "dks": "Deep Kernel Shaping: Martens et al., arXiv:2110.01765",
    "tat": "Tailored Activation Transformation: Zhang et al., arXiv:2203.08120",
}


@dataclass(frozen=True)
class AffineTransform:
    """The function x -> a (f(b x + c) + d); equal for equal numbers and f.

    Attributes:
        activation: f.
        output_scale: a.
        input_scale: b.
        input_shift: c.
        output_shift: d.
    """

    activation: Activation
    output_scale: float
    input_scale: float = 1.0
    input_shift: float = 0.0
    output_shift: float = 0.0

    def __call__(self, x: Any) -> Float[Array, "..."]:  # an array of JAX or NumPy, or one number of NumPy's
        """Apply it to every entry."""
        inner = self.activation(self._inner(x))
        return (self.output_scale * (inner + self.output_shift)).astype(x.dtype)

    def _inner(self, x: Any) -> Any:
        # The sum with d cancels: half precision would leave nothing.
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return self.input_scale * wide + self.input_shift


@dataclass(frozen=True)
class _Slope:
    """The derivative of an `AffineTransform`."""

    transform: AffineTransform

    def __call__(self, x: Any) -> Float[Array, "..."]:  # an array of JAX or NumPy, or one number of NumPy's
        t = self.transform
        return (t.output_scale * t.input_scale * t.activation.derivative(t._inner(x))).astype(x.dtype)


@dataclass(frozen=True)
class _Moments:
    """Gaussian moments of an `AffineTransform` with d = 0."""

    transform: AffineTransform

    def __call__(self, mean: ArrayLike, variance: ArrayLike) -> tuple[Array, Array]:
        t = self.transform
        assert t.activation.moments is not None
        first, second = t.activation.moments(
            t.input_scale * jnp.asarray(mean) + t.input_shift, t.input_scale**2 * jnp.asarray(variance)
        )
        return t.output_scale * first, t.output_scale**2 * second


def _shaped(t: AffineTransform, name: str, reference: str) -> Activation:
    """The Activation of a transform, with the facts of f carried over."""
    f = t.activation
    is_scaling = t.input_shift == 0 and t.output_shift == 0

    def place(x: float) -> float:
        return (x - t.input_shift) / t.input_scale + 0.0  # no -0

    return Activation(
        name=name,
        fn=t,
        derivative=_Slope(t),
        range=Interval(*(t.output_scale * (end + t.output_shift) for end in f.range)),
        slope_range=Interval(*(t.output_scale * t.input_scale * end for end in f.slope_range)),
        kinks=tuple(map(place, f.kinks)),
        breakpoints=tuple(map(place, f.breakpoints)),
        monotone=f.monotone,
        odd=f.odd and is_scaling,
        homogeneous=f.homogeneous and is_scaling,
        argmin=None if f.argmin is None else place(f.argmin),
        exact=f.exact,
        formula=_formula(t),
        reference=reference,
        # With d the second moment would be a difference of numbers a^2 times its size.
        moments=_Moments(t) if f.moments is not None and t.output_shift == 0 else None,
    )


def _formula(t: AffineTransform) -> str:
    if not t.activation.formula:
        return ""
    inner = f"({t.input_scale!r} * x + {t.input_shift!r})"
    if (t.input_scale, t.input_shift) == (1, 0):
        inner = "x"
    outer = re.sub(r"\bx\b", lambda _: inner, t.activation.formula)
    shift = f" + {t.output_shift!r}" if t.output_shift else ""
    return f"{t.output_scale!r} * (({outer}){shift})"


def _target(activation: Any, wanted: str, given: dict[str, float | None]) -> float:
    """The one target that counts, checked; the others must not be given."""
    for name, value in given.items():
        if name != wanted and value is not None:
            raise ValueError(
                f"`{name}` is not what is asked of {activation.name} here, got {value:g}. Give `{wanted}`."
            )
    value = given[wanted]
    target = _DEFAULTS[wanted] if value is None else float(value)
    low, high = _LIMITS[wanted]
    if not low < target < high:
        raise ValueError(f"`{wanted}` must lie strictly between {low} and {high}, got {target:g}.")
    return target


def _tailored_rectifier(depth: int | np.integer, method: str, target: float) -> AffineTransform:
    """The leaky relu of scale and, for "dks", output shift that meets the conditions.

    With t = (1 - alpha)^2 / (1 + alpha^2), which is 1 for the relu, and centring for "dks":

        "tat":  C(c) = c + t (sqrt(1 - c^2) - c arccos c) / pi
        "dks":  C'(1) = E f'^2 / Var f = 1 / (1 - t / pi),   and Q'(1) = 1 since z f'(z) = f(z)
    """

    def excess(t: float) -> float:
        c = 0.0
        for _ in range(depth):
            c += t * (math.sqrt((1 - c) * (1 + c)) - c * math.acos(c)) / math.pi
            c = min(c, 1.0)  # against rounding
        return c - target

    if method == "dks":
        t = -math.pi * math.expm1(-math.log(target) / depth)
        log_reached = -depth * math.log1p(-1 / math.pi)
        reached = math.exp(log_reached) if log_reached < _LARGE else math.inf
    else:
        reached = excess(1.0) + target
        t = scipy.optimize.brentq(excess, 0.0, 1.0, xtol=1e-15, rtol=1e-15) if reached >= target else math.inf
    if not t <= 1:
        raise ValueError(
            f"`{'zeta' if method == 'dks' else 'eta'}` must be at most {reached:.4g}, what relu itself reaches at "
            f"depth {depth}, got {target:g}. Give a smaller one or a larger depth."
        )
    alpha = (1 - t) / (1 + math.sqrt(t * (2 - t)))  # the root in [0, 1], without cancellation
    second, mean = (1 + alpha**2) / 2, (1 - alpha) / math.sqrt(2 * math.pi)
    if method == "tat":
        mean = 0.0
    return AffineTransform(leaky_relu(alpha), (second - mean**2) ** -0.5, output_shift=-mean + 0.0)


def _solve(activation: Any, depth: int | np.integer, method: str, target: float) -> AffineTransform:
    """The solution with the least a b.

    Given b and c, d and a follow: with e = d + E f(b z + c), a = (Var f + e^2)^(-1/2), and e = 0 ("dks") or
    e = +-(b^2 E f'^2 - Var f)^(1/2) ("tat"; the root exists by the Gaussian Poincare inequality). Two equations in
    (log b, c) are left.
    """
    conditions = partial(_conditions, depth=depth, method=method, target=target)
    evaluate = partial(_statistics, activation, method == "tat")
    grid = np.stack(np.meshgrid(np.log(_SCALES), _SHIFTS, indexing="ij"), -1)
    statistics = evaluate(grid.reshape(-1, 2)).reshape(*grid.shape[:2], -1)
    starts: list[np.ndarray] = []
    signs: list[np.ndarray] = []
    for branch in (1, -1) if method == "tat" else (0,):
        starts.append(_starts(conditions(statistics, branch), grid))
        signs.append(np.full(len(starts[-1]), branch))
    points, sign = np.concatenate(starts), np.concatenate(signs)
    points = _newton(lambda points, sign: conditions(evaluate(points), sign), points, sign)
    rows = evaluate(points)
    # NaN, where an iteration got lost, is no solution either.
    solved = (np.abs(conditions(rows, sign)) < _TOLERANCE).all(-1)
    if not solved.any():
        name = {"dks": "zeta", "tat": "tau"}[method]
        raise ValueError(
            f"`activation` must allow a solution of the four conditions, got {activation.name}, for which none was "
            f'found with method="{method}", depth={depth}, {name}={target:g}. Try the other method, another {name}, '
            "or a smooth activation, such as tanh or softplus."
        )
    points, rows, sign = points[solved], rows[solved], sign[solved]
    offset = _offset(rows, sign)
    output_scale = 1 / np.sqrt(rows[:, 1] + offset**2)
    amplification = output_scale * np.exp(points[:, 0])

    def rank(i: int) -> tuple:
        # Mirror images and periods tie up to rounding: the shift decides.
        rounded = (float(f"{x:.6e}") for x in (amplification[i], abs(points[i, 1])))
        return max(rows[i, 6], _KURTOSIS), *rounded, points[i, 1] < 0

    i = min(range(len(points)), key=rank)
    return AffineTransform(
        activation,
        output_scale=float(output_scale[i]),
        input_scale=math.exp(points[i, 0]),
        input_shift=float(points[i, 1]),
        output_shift=float(offset[i] - rows[i, 0]),
    )


def _conditions(
    statistics: np.ndarray, sign: Any, *, depth: int | np.integer, method: str, target: float
) -> Float[np.ndarray, "*points 2"]:
    """The excess in the two conditions that are left."""
    _, variance, stretch, drift, slope, curvature, _ = np.moveaxis(statistics, -1, 0)
    with np.errstate(all="ignore"):
        e = _offset(statistics, sign)
        total = variance + e * e  # 1 / a^2
        kept = ((stretch + e * drift) / total - 1) * depth  # Q'(1) = 1
        if method == "dks":
            network = np.log(slope / total) * depth / math.log(target) - 1
        else:
            network = np.log(curvature / total * depth / target)
        return np.stack([network, kept], -1)


def _offset(statistics: np.ndarray, sign: Any) -> np.ndarray:
    """The mean of f + d."""
    return sign * np.sqrt(np.maximum(statistics[..., 4] - statistics[..., 1], 0))


def _starts(excess: np.ndarray, grid: np.ndarray) -> Float[np.ndarray, "starts 2"]:
    """Centres of the cells at whose corners both conditions change their sign, and a few last resorts."""

    def corners(table: np.ndarray) -> np.ndarray:
        return np.stack([table[:-1, :-1], table[1:, :-1], table[:-1, 1:], table[1:, 1:]])

    above, centres = corners(excess > 0), corners(grid).mean(0)
    is_start = (above.any(0) & ~above.all(0)).all(-1)
    # Two curves that nearly touch may meet between the corners: take the places of least excess too.
    size = corners(np.nan_to_num(np.abs(excess), nan=np.inf)).max(-1).min(0)
    is_start.flat[np.argsort(size, axis=None)[:_NUM_LAST_RESORTS]] = True
    return centres[is_start & np.isfinite(size)]


def _newton(excess: Any, points: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """Newton's method from all starts at once, by difference quotients."""
    for _ in range(_NUM_STEPS):
        reach = np.stack([np.ones(len(points)), np.exp(points[:, 0]) + np.abs(points[:, 1])], -1)
        moves = 1e-6 * reach[None] * np.eye(2)[:, None]
        values = excess(
            np.concatenate([points, *(points + move for move in moves)]), np.concatenate([sign] * 3)
        ).reshape(3, -1, 2)
        with np.errstate(all="ignore"):
            slope = (values[1:] - values[0]) / 1e-6  # [variable, start, condition]
            (p, r), (q, s) = np.moveaxis(slope, 1, -1)
            x, y = values[0].T
            step = np.stack([q * y - s * x, r * x - p * y], -1) / (p * s - q * r)[:, None]
        points = points + reach * np.nan_to_num(np.clip(step, -0.5, 0.5))
    return points


def _statistics(activation: Any, needs_curvature: bool, points: np.ndarray) -> np.ndarray:
    """Of g(z) = f(b z + c) at every (log b, c), [points, 7].

    E g, Var g, E z (g - E g) g', E z g', E g'^2, E g''^2, and E r^4 / (E r^2)^2 for what is not linear in g, r.
    """
    scale, shift = np.exp(np.clip(points[:, 0], -14, 7)), np.clip(points[:, 1], -1e3, 1e3)
    rows = []
    for start in range(0, len(points), _CHUNK):
        # Always the same shape: one compilation serves the grid and every step of the solver.
        chunk = np.arange(start, start + _CHUNK) % len(points)
        rows.append(np.asarray(_statistics_of(activation, needs_curvature, scale[chunk], shift[chunk])))
    return np.concatenate(rows)[: len(points)]


@partial(jax.jit, static_argnums=(0, 1))
def _statistics_of(activation: Any, needs_curvature: bool, scale: Array, shift: Array) -> Array:
    x, weights = gaussian_nodes(breakpoints(activation), shift, scale**2)
    scale = scale[:, None]
    z = (x - shift[:, None]) / scale
    g, slope = activation(x), activation.derivative(x) * scale
    mean = jnp.sum(g * weights, -1) * nan_unless_resolved(activation, scale[:, 0] ** 2, shift, power=4)
    centred = g - mean[:, None]
    curvature = jnp.zeros_like(x)
    if needs_curvature:
        curvature = jax.jvp(activation.derivative, (x,), (jnp.ones_like(x),))[1] * scale**2

    def expect(values: Array) -> Array:
        return jnp.sum(values * weights, -1)

    rest = centred - expect(z * centred)[:, None] * z
    squares = (centred**2, z * centred * slope, z * slope, slope**2, curvature**2)
    return jnp.stack([mean, *map(expect, squares), expect(rest**4) / expect(rest**2) ** 2], -1)
