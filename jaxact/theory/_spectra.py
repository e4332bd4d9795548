"""The singular values of a deep random network's Jacobian, in the limit of infinite width."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxact import xla
from jaxact.numerics import check_count, gaussian_nodes
from jaxact.theory._checks import check_number, check_untraced
from jaxact.theory._integrable import breakpoints, refuse_fast_growth, refuse_unresolved
from jaxact.theory._phase import mean_field

_TINY = 1e-30  # stands for q = 0: slopes at a kink at 0 are one side's as often as the other's
_TAIL = 1e-3  # the part of the bulk that may lie below the automatic grid, where a hard edge goes on for ever
_NEGLIGIBLE = 1e-9  # of the bulk, above the grid; less bulk than that is none
_LEAST_ATOM = 1e-6

# Expectations over z. Nodes may lie close to zeta only where the spectrum's density is small, which it is over
# stretches in shallow networks: those get more of them.
_REACH = 10.0  # standard deviations: where `gaussian_nodes` ends
_FEW, _NUM_PANELS = 4, 80
_GRADED = np.concatenate([-(8.0 ** -np.arange(1, 8)), [0.0], 8.0 ** -np.arange(1, 8)])
_NUM_CELLS = 8000  # for slopes alone
_MAX_ZEROS = 16  # of f', that are resolved
_NUM_EQUAL = 16  # equal values that make an atom: less than a panel's nodes, more than chance
_APART = 1e-3  # of the largest t: where slopes go to 0 continuously, nodes come much closer
_PIECES = 16  # more values of t than a piecewise linear activation has
_UNDERFLOW = 1e-290  # of the largest t: what is less counts as 0
_HUGE, _LARGE = 1e150, 700.0  # squares and exponentials of these are finite

_NUM_HALVINGS = 60
_RATIO, _NUM_ANGLES = 0.5, 34
_ANGLE = math.pi * _RATIO**_NUM_ANGLES  # 2e-10: where x stops short of the positive axis
_NUM_CORRECTIONS = 3
_MAX_ERROR = 1e-6
_ASIDE = 1e-4  # of an atom, in log x
_CHUNK = 200  # eigenvalues solved for at once, whatever their number: one compiled shape
_BUCKET = 256  # numbers of nodes are rounded up to a multiple


class Spectrum(NamedTuple):
    """The law of the eigenvalues of J J^T: a density, the bulk, and atoms. Numpy, float64.

    Depth multiplies logarithms: at depth 64 the bulk of Gaussian weights reaches down to e^-450, and at depth 1000
    no float holds it. Hence logarithms throughout.

    Attributes:
        log_eigenvalues: log lambda, ascending and evenly spaced over the bulk, or what was asked for.
        density: of the bulk with respect to log lambda; divide by lambda for that with respect to lambda.
        cdf: P(eigenvalue <= lambda), the atoms included.
        atom_locations: eigenvalues of positive probability, ascending; as eigenvalues, not logarithms.
        atom_masses: their probabilities. The bulk has the rest.
        m1: E lambda, the growth of a squared gradient. Exact; inf where it overflows.
        m2: E lambda^2. Exact; inf where it overflows.
        log_lambda_min: log of the infimum of the support without the atom at 0; -inf where the bulk reaches 0, as it
            does for Gaussian weights but for one layer with an atom at 0, which is like a rectangular matrix.
        log_lambda_max: log of the supremum of the support, atoms included, to about 1e-9; inf where slopes are
            unbounded. Slopes that occur only beyond 10 standard deviations are left out.
    """

    log_eigenvalues: Float[np.ndarray, " points"]
    density: Float[np.ndarray, " points"]
    cdf: Float[np.ndarray, " points"]
    atom_locations: Float[np.ndarray, " atoms"]
    atom_masses: Float[np.ndarray, " atoms"]
    m1: float
    m2: float
    log_lambda_min: float
    log_lambda_max: float

    @property
    def eigenvalues(self) -> Float[np.ndarray, " points"]:
        """The grid as eigenvalues; 0 or inf where a float cannot hold them."""
        with np.errstate(over="ignore", under="ignore"):
            return np.exp(self.log_eigenvalues)

    @property
    def lambda_min(self) -> float:
        """The infimum of the support without the atom at 0."""
        return _exp(self.log_lambda_min)

    @property
    def lambda_max(self) -> float:
        """The supremum of the support: the square of the Jacobian's spectral norm."""
        return _exp(self.log_lambda_max)

    @property
    def bulk_mass(self) -> float:
        """The probability of the bulk: 1 less the atoms."""
        return max(1 - float(self.atom_masses.sum()), 0.0)


def jacobian_spectrum(
    activation: Any,
    depth: int,
    *,
    sigma_w: float,
    sigma_b: float = 0.0,
    q: float | None = None,
    weights: Literal["gaussian", "orthogonal"] = "gaussian",
    num_points: int = 200,
    log_eigenvalues: Float[ArrayLike, " points"] | Sequence[float] | None = None,
) -> Spectrum:
    """Compute the limiting law of the eigenvalues of J J^T, J the Jacobian of a deep random network at its start.

        J = D_L W_L ... D_1 W_1,   D_l = diag f'(h_l),   h_l ~ N(0, q),   W W^T = sigma_w^2 I or W_ij ~ N(0,
        sigma_w^2 / width)

    as the width goes to infinity, the D and W being free (Pennington, Schoenholz & Ganguli 2017, "Resurrecting the
    sigmoid in deep learning through dynamical isometry"; 2018, "The emergence of spectral universality").
    With t = f'(sqrt(q) z)^2, z ~ N(0, 1), and M(zeta) = E t / (zeta - t) the multiplicativity of S-transforms gives the
    generating function w = E lambda / (x - lambda) of J J^T at x as w = M(zeta), where zeta solves

        log x = L [log zeta + log sigma_w^2 + log w - (1 - g) log(1 + w)] + log(1 + w) - log w,

    g = 1 for Gaussian and 0 for orthogonal weights. On the real axis from above,

        density of log x = -Im w / pi,   cdf(x) = 1 - Im {L [E log(zeta - t) + log w + g w] - log w} / pi,

    the latter since E log(x - lambda) integrates (1 + w) d log x, which the equation above makes elementary. It is
    solved on the negative axis, where it is monotone, and followed by Newton's method while x turns to an angle of
    2e-10. Expectations are sums over the nodes of `jaxact.numerics.gaussian_nodes`, |z| <= 10. In float64 whatever
    JAX's default; on the host: nothing here may be traced.

    Exact in that limit up to numerics. The cdf: about 1e-8 where t takes few values (relu, hard_tanh, leaky_relu) and
    1e-6 elsewhere, in shallow networks at the worst 1e-3 (one or two layers of steep or saturated slopes). The density:
    about 1e-4, less certain where it is below 1e-3 itself; it may be infinite at an edge. A network of finite width N
    differs by a few 1 / N in the cdf, and by up to 1 / sqrt(N) near an atom at 0: its rank is its narrowest layer's.

    Atoms: 0 with probability P(t = 0) at any depth; for orthogonal weights also (sigma_w^2 a)^L, with probability
    1 - L (1 - P(t = a)) where that is positive. Moments:

        m1 = (sigma_w^2 mu_1)^L,   m2 = m1^2 [1 + L (mu_2 / mu_1^2 - 1 + g)],   mu_k = E t^k

    exactly (s_1 = -g in the papers' notation).

    Args:
        activation: an `Activation`. Static.
        depth: L, the number of layers, each one W and one D; at least 1.
        sigma_w: weight scale, nonnegative.
        sigma_b: bias scale, nonnegative; only the fixed point depends on it.
        q: second moment of the preactivations, nonnegative. Default: the fixed point of `mean_field`; 0 takes the
            slope at 0.
        weights: "gaussian" or "orthogonal".
        num_points: number of points of the automatic grid, at least 2. It runs over the bulk but for at most 1e-3 of
            its mass at either end that has no edge.
        log_eigenvalues: where to evaluate instead; finite, any order.

    Returns:
        A `Spectrum`.

    Raises:
        TypeError: `activation` does not know its kinks and derivative.
        ValueError: a number is out of range; `weights` is unknown; the signal grows for ever, so that there is no
            fixed point, and no q is given; f oscillates too fast (see `moments`); or all slopes or weights are 0.
        FloatingPointError: the equation was not solved to 1e-6 somewhere.

    Example:
        >>> from jaxact import activations
        >>> found = jacobian_spectrum(activations.relu, 2, sigma_w=2.0**0.5, weights="orthogonal")
        >>> round(found.lambda_max, 6), found.atom_locations.tolist(), found.atom_masses.round(6).tolist()
        (4.0, [0.0], [0.5])
    """
    breakpoints(activation)
    refuse_fast_growth(activation)
    gaussian = _check(depth, weights, num_points, log_eigenvalues, sigma_w=sigma_w, sigma_b=sigma_b, q=q)
    depth = int(depth)
    length = _fixed_point(activation, sigma_w, sigma_b) if q is None else float(q)
    refuse_unresolved(activation, length, power=4)
    law = _law(activation, depth, gaussian, float(sigma_w), length or _TINY)
    locations, masses = _atoms(law)
    low, high = _edges(law, activation)
    if log_eigenvalues is not None:
        x = np.asarray(log_eigenvalues, float).reshape(-1)
    else:
        x = _grid(law, locations, masses, low, min(high, _upper_edge(law)), num_points)
    density, cdf = _evaluate(law, locations, masses, x)
    mu_1, mu_2 = law.t @ law.mass, law.t**2 @ law.mass
    log_m1 = depth * (law.scale + math.log(mu_1))
    spread = 1 + depth * (mu_2 / mu_1**2 - 1 + gaussian)
    return Spectrum(
        log_eigenvalues=x,
        density=density,
        cdf=np.minimum(cdf + masses @ (locations[:, None] <= x), 1),
        atom_locations=np.array([_exp(each) for each in locations]),
        atom_masses=masses,
        m1=_exp(log_m1),
        m2=_exp(2 * log_m1 + math.log(spread)),
        log_lambda_min=low,
        log_lambda_max=high,
    )


class _Law(NamedTuple):
    """What determines the spectrum: t ascending with probabilities `mass`; scale = log sigma_w^2."""

    depth: int
    gaussian: bool
    scale: float
    t: np.ndarray
    mass: np.ndarray
    is_atom: np.ndarray  # whether P(t) is `mass`, not a node's share of a density
    cells: (
        tuple[np.ndarray, np.ndarray, np.ndarray] | None
    )  # for one orthogonal layer, which leaves t as it is


def _check(depth, weights, num_points, log_eigenvalues, *, sigma_w, sigma_b, q) -> bool:
    """Refuse bad input; return whether the weights are Gaussian."""
    check_count("depth", depth)
    check_count("num_points", num_points, 2)
    if weights not in ("gaussian", "orthogonal"):
        raise ValueError(f'`weights` must be "gaussian" or "orthogonal", got {weights!r}. Pass one of these.')
    for name, value in (("sigma_w", sigma_w), ("sigma_b", sigma_b), ("q", 0.0 if q is None else q)):
        check_number(name, value)
    check_untraced("log_eigenvalues", log_eigenvalues)
    if log_eigenvalues is not None and not np.isfinite(np.asarray(log_eigenvalues, float)).all():
        raise ValueError(
            f"`log_eigenvalues` must be finite, got {log_eigenvalues}. The mass at eigenvalue 0 is in atom_masses."
        )
    return weights == "gaussian"


def _fixed_point(activation: Any, sigma_w: float, sigma_b: float) -> float:
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        found = float(_fixed_length(activation, float(sigma_w), float(sigma_b)))
    if math.isnan(found):
        raise ValueError(
            f"`sigma_w` = {sigma_w:g} and `sigma_b` = {sigma_b:g} have no fixed point of the variance map where "
            f"{getattr(activation, 'name', activation)} can be integrated. Give q."
        )
    if not math.isfinite(found):
        raise ValueError(
            f"`sigma_w` and `sigma_b` must have a fixed point of the variance map, got {sigma_w} and {sigma_b}, where "
            f"{getattr(activation, 'name', activation)} lets signals grow for ever. Give smaller ones, or q."
        )
    return found


@partial(jax.jit, static_argnums=0)
def _fixed_length(activation: Any, sigma_w: Array, sigma_b: Array) -> Array:
    return mean_field(activation, sigma_w=sigma_w, sigma_b=sigma_b).q_star


def _law(activation: Any, depth: int, gaussian: bool, sigma_w: float, q: float) -> _Law:
    """The law of t = f'(sqrt(q) z)^2 as distinct values and their probabilities."""
    kinks = np.asarray(breakpoints(activation), float)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        zeros = np.asarray(_zeros(activation, kinks, q))
        # Where t goes to 0, log t goes to -inf: resolved by panels that shrink towards it.
        points = np.concatenate([kinks, zeros[np.isfinite(zeros)]])
        splits = np.concatenate([kinks, (points[:, None] + math.sqrt(q) * _GRADED).reshape(-1)])
        if depth * (1 + gaussian) <= _FEW:
            splits = np.concatenate([splits, math.sqrt(q) * np.linspace(-_REACH, _REACH, _NUM_PANELS + 1)])
        slopes, probabilities = (np.asarray(each) for each in _slopes(activation, splits, q))
    t, mass = slopes[probabilities > 0] ** 2, probabilities[probabilities > 0]
    order = np.argsort(t)
    t, mass = t[order], mass[order] / mass.sum()
    if sigma_w == 0 or t[-1] == 0:
        raise ValueError(
            f"`sigma_w` and the slopes must not all be 0, got sigma_w={sigma_w} and slopes up to {t[-1] ** 0.5:g} for "
            f"{getattr(activation, 'name', activation)} at q={q:g}: J is 0."
        )
    t[t < _UNDERFLOW * t[-1]] = 0
    # Equal but for rounding: linear pieces, and tails that are linear in floating point, fill whole panels.
    is_first = np.concatenate([[True], t[1:] - t[:-1] > 8 * np.finfo(float).eps * t[1:]])
    index = np.cumsum(is_first) - 1
    mass, count = np.bincount(index, mass), np.bincount(index)
    scale = 2 * math.log(sigma_w)
    cells = None if gaussian or depth > 1 else _cells(activation, splits / math.sqrt(q), q, scale)
    return _Law(depth, gaussian, scale, t[is_first], mass, count >= _NUM_EQUAL, cells)


@partial(jax.jit, static_argnums=0)
def _slopes(activation: Any, splits: Array, q: Array) -> tuple[Array, Array]:
    x, weights = gaussian_nodes(splits, jnp.zeros_like(q), q)
    return activation.derivative(x), weights


@partial(jax.jit, static_argnums=0)
def _derivative(activation: Any, x: Array) -> Array:
    return activation.derivative(x)


@partial(jax.jit, static_argnums=0)
def _zeros(activation: Any, splits: Array, q: Array) -> Array:
    """Where f' changes its sign, at most `_MAX_ZEROS` of them; the rest NaN."""
    x, _ = gaussian_nodes(splits, jnp.zeros_like(q), q)
    slope = activation.derivative(x)
    (index,) = jnp.nonzero(slope[1:] * slope[:-1] < 0, size=_MAX_ZEROS, fill_value=-1)
    low, high = x[index], x[index + 1]
    sign = jnp.sign(slope[index])

    def halve(_, bounds):
        middle = (bounds[0] + bounds[1]) / 2
        is_left = activation.derivative(middle) * sign > 0
        return jnp.where(is_left, middle, bounds[0]), jnp.where(is_left, bounds[1], middle)

    return jnp.where(index < 0, jnp.nan, jax.lax.fori_loop(0, 60, halve, (low, high))[0])


def _cells(activation: Any, splits: np.ndarray, q: float, scale: float):
    """Intervals of z as those of log lambda that they map to, ends in order, and probabilities."""
    z = np.unique(
        np.clip(np.concatenate([splits, np.linspace(-_REACH, _REACH, _NUM_CELLS + 1)]), -_REACH, _REACH)
    )
    inside = 1e-9 * (z[1:] - z[:-1])  # one-sided limits at a jump
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        ends = np.stack([z[:-1] + inside, z[1:] - inside])
        slopes = np.asarray(_derivative(activation, math.sqrt(q) * ends))
        mass = np.asarray(jax.scipy.special.ndtr(z[1:]) - jax.scipy.special.ndtr(z[:-1]))
    log_t = np.log(np.maximum(slopes**2, np.finfo(float).tiny)) + scale
    return log_t.min(0), log_t.max(0), mass


def _atoms(law: _Law) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the places of atoms, ascending, and their masses.

    Free multiplicative convolution keeps an atom at 0 of the factor that has most of it; atoms a and b elsewhere make
    one at a b if their masses exceed 1 together, by as much as they do. A Wishart matrix has none.
    """
    masses = np.where(law.t == 0, law.mass, 0 if law.gaussian else 1 - law.depth * (1 - law.mass))
    keep = law.is_atom & (masses > _LEAST_ATOM)
    with np.errstate(divide="ignore"):
        return law.depth * (law.scale + np.log(law.t[keep])), masses[keep]


def _edges(law: _Law, activation: Any) -> tuple[float, float]:
    """Logarithms of the least and the greatest point of the support, 0 left aside."""
    high = math.inf if math.isinf(getattr(activation, "lipschitz", 0.0)) else _upper_edge(law)
    is_zero = law.t == 0
    zero, least = law.mass[is_zero].sum(), law.t[~is_zero][0]
    if (law.depth > 1 and zero) or (law.gaussian and (law.depth > 1 or not zero)):
        return -math.inf, high
    # Many values and a sign change: some slope is 0, though no node may be there.
    bounds = getattr(activation, "slope_range", (0.0, 0.0) if zero else (1.0, 1.0))
    is_apart = zero and least > _APART * law.t[-1]
    if bounds[0] <= 0 <= bounds[1] and law.t.size > _PIECES and not is_apart:
        return -math.inf, high
    if not zero:
        return _lower_edge(law), high
    if not law.gaussian:
        return law.scale + math.log(least), high
    return law.scale + _lower_edge_of_one(law.t[~is_zero], law.mass[~is_zero], zero), high


def _lower_edge(law: _Law) -> float:
    """Of orthogonal layers without zero slopes: the inverse of J J^T is of the same kind, with 1 / t."""
    return -_upper_edge(law._replace(scale=-law.scale, t=1 / law.t[::-1], mass=law.mass[::-1]))


def _lower_edge_of_one(t: np.ndarray, mass: np.ndarray, zero: float) -> float:
    """Of one Gaussian layer with P(t = 0) = zero, at sigma_w = 1: the maximum of x by zeta from 0 to the least t.

    For depth 1 the equation is x = zeta E zeta / (zeta - t), which is concave there.
    """
    ratio = t / t[0]
    low, high = 0.0, 1.0
    for _ in range(_NUM_HALVINGS):
        z = (low + high) / 2
        is_rising = zero > mass @ (z * (2 * ratio - z) / (ratio - z) ** 2)
        low, high = (z, high) if is_rising else (low, z)
    return math.log(t[0] * low * (zero - low * float(mass @ (1 / (ratio - low)))))


def _upper_edge(law: _Law) -> float:
    """Log of the supremum of the support: log x at the last zero of its derivative by zeta above max t, or at max t."""
    ratio = law.t / law.t[-1]

    def log_x(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # and the sign of its derivative
        above = np.exp(v)[:, None]
        gap = above + (1 - ratio)  # zeta / max t - t / max t
        w, square = (ratio / gap) @ law.mass, (ratio / gap**2) @ law.mass
        log_zeta = np.log1p(above[:, 0])
        g, n = float(law.gaussian), law.depth
        value = n * (log_zeta + np.log(w) - (1 - g) * np.log1p(w)) + np.log1p(w) - np.log(w)
        slope = (
            n * (1 / (1 + above[:, 0]) - square / w + (1 - g) * square / (1 + w))
            - square / (1 + w)
            + square / w
        )
        return value + n * (law.scale + math.log(law.t[-1])), slope

    low, high = -60.0, math.log(law.depth + 1) + 40
    for _ in range(9):
        v = np.linspace(low, high, 101)
        value, slope = log_x(v)
        (falls,) = np.nonzero(slope < 0)
        if not falls.size:
            break
        low, high = v[falls[-1]], v[min(falls[-1] + 1, 100)]
    return float(value[0])


def _grid(law, locations, masses, low, high, num_points) -> np.ndarray:
    """Evenly spaced points over the bulk, narrowed where most of the support holds next to nothing."""
    bulk = 1 - masses.sum()
    if bulk < _NEGLIGIBLE:
        return np.full(num_points, locations[-1])
    low = max(low, _quantile_bound(law, _TAIL * bulk))
    for _ in range(4):
        edges = np.linspace(low, high, num_points + 1)
        x = (edges[1:] + edges[:-1]) / 2
        part = _evaluate(law, locations, masses, x)[1] / bulk
        first = np.searchsorted(part, _TAIL)
        last = np.searchsorted(part, 1 - _NEGLIGIBLE)
        if last - first > num_points // 2:
            break
        low, high = x[first - 1] if first else low, x[last] if last < num_points else high
    return x


def _quantile_bound(law: _Law, p: float) -> float:
    """A log x below which the bulk has at most 2 p: where E x / (x + lambda) exceeds the atom at 0 by p."""
    is_zero = law.t == 0
    t, mass = law.t[~is_zero], law.mass[~is_zero]
    low, high = math.log(t[0]) - 60, math.log(t[-1]) + 60
    for _ in range(60):
        middle = (low + high) / 2
        is_below = mass @ (1 / (1 + np.exp(np.minimum(np.log(t) - middle, _LARGE)))) < p
        low, high = (middle, high) if is_below else (low, middle)
    atom = law.mass[is_zero].sum()
    minus_w, g = mass.sum() - p, float(law.gaussian)
    one_plus_w = atom + p
    power = law.depth * (low + law.scale + math.log(minus_w) - (1 - g) * math.log(one_plus_w))
    return power + math.log(one_plus_w / minus_w)


def _evaluate(law: _Law, locations, masses, x) -> tuple[np.ndarray, np.ndarray]:
    """Density of the bulk with respect to log x, and its part of the cdf."""
    if 1 - masses.sum() < _NEGLIGIBLE or not x.size:
        return np.zeros_like(x), np.zeros_like(x)
    if law.cells is not None:
        return _evaluate_cells(law.cells, 1 - masses.sum(), x)
    # Beside an atom the bulk is a small difference of large numbers.
    for each in locations[np.isfinite(locations)]:
        x = np.where(np.abs(x - each) < _ASIDE, each + _ASIDE, x)
    # Off the support there is nothing to see, and further off zeta overflows.
    x = np.minimum(x, _upper_edge(law) + 1)
    if not law.gaussian and law.t[0] > 0:
        x = np.maximum(x, _lower_edge(law) - 1)
    padded = np.concatenate([x, np.full(-x.size % _CHUNK, x[-1])]).reshape(-1, _CHUNK)
    size = -law.t.size % _BUCKET
    t = np.concatenate([law.t, np.full(size, law.t[-1])])
    mass = np.concatenate([law.mass, np.zeros(size)])
    numbers = float(law.depth), float(law.gaussian), law.scale
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        rows = [np.asarray(_follow(t, mass, *numbers, jnp.asarray(each))) for each in padded]
    density, above, error = np.concatenate(rows, 1)[:, : x.size]
    if not (error < _MAX_ERROR).all():
        worst = np.argmax(np.where(np.isnan(error), np.inf, error))
        raise FloatingPointError(
            f"The spectrum's equation was solved only to {error[worst]:.1g} at log eigenvalue {x[worst]:.6g}."
        )
    for location, part in zip(locations, masses, strict=True):
        if np.isfinite(location):
            ratio = np.exp(x - location + 1j * _ANGLE)  # what the atom gives at this angle
            density = density + part * (1 / (ratio - 1)).imag / np.pi
            above = above - part * np.angle(ratio - 1) / np.pi
    bulk = 1 - masses.sum()
    return np.maximum(density, 0), np.clip(bulk - above, 0, bulk)


def _evaluate_cells(cells, bulk: float, x) -> tuple[np.ndarray, np.ndarray]:
    """`_evaluate` for one orthogonal layer: each cell's probability spread evenly over what it maps to."""
    low, high, mass = cells
    is_bulk = high - low > 1e-12  # the others are atoms
    low, high, mass = low[is_bulk], high[is_bulk], mass[is_bulk] * (bulk / mass[is_bulk].sum())
    part = (x[:, None] - low) / (high - low)
    is_inside = (part > 0) & (part < 1)
    return is_inside @ (mass / (high - low)), np.clip(part, 0, 1) @ mass


# Where a process compiles fast, too: at level 0 it runs seven times as long.
@partial(jax.jit, compiler_options=xla.options(1))
def _follow(t, mass, depth, g, scale, x):
    """Turn x from the negative axis, where the solution is unique, to the positive one; [3, points]."""

    def sums(u):
        # By t / zeta: zeta itself may be so small that its square underflows.
        ratio = jnp.minimum(t * jnp.exp(-u.real)[:, None], _HUGE)
        a, b = 1 - ratio * jnp.cos(u.imag)[:, None], ratio * jnp.sin(u.imag)[:, None]
        inverse = 1 / (a * a + b * b)
        real, imag = a * inverse, -b * inverse  # of 1 / (1 - t / zeta)
        turn = jnp.exp(-1j * u.imag)
        weighted = ratio * mass
        v = jax.lax.complex(real @ mass, imag @ mass)  # 1 + w without cancellation
        w = turn * jax.lax.complex((real * weighted).sum(1), (imag * weighted).sum(1))
        square = jax.lax.complex(
            ((real * real - imag * imag) * weighted).sum(1), (2 * real * imag * weighted).sum(1)
        )
        return w, v, -turn * square

    def log(z):  # of the lower half plane, the negative axis included
        return jax.lax.complex(jnp.log(jnp.abs(z)), jnp.arctan2(-jnp.abs(z.imag), z.real))

    def equation(u):
        w, v, dw = sums(u)
        value = depth * (u + scale + log(w) - (1 - g) * log(v)) + log(v) - log(w)
        slope = depth * (1 + dw / w - (1 - g) * dw / v) + dw / v - dw / w
        return value, slope

    def on_negative_axis(u):
        ratio = jnp.minimum(t * jnp.exp(jnp.minimum(-u, _LARGE))[:, None], _HUGE)
        inverse = 1 / (1 + ratio)
        log_w, log_v = jnp.log((ratio * inverse) @ mass), jnp.log(inverse @ mass)
        return depth * (u + scale + log_w - (1 - g) * log_v) + log_v - log_w

    # d log x / d log zeta >= 1 there, by subordination: a bracket.
    anchor = jnp.full_like(x, jnp.log(t @ mass))
    away = x - on_negative_axis(anchor)
    bounds = anchor + jnp.minimum(away, 0), anchor + jnp.maximum(away, 0)

    def halve(_, bounds):
        middle = (bounds[0] + bounds[1]) / 2
        is_below = on_negative_axis(middle) < x
        return jnp.where(is_below, middle, bounds[0]), jnp.where(is_below, bounds[1], middle)

    start = jax.lax.fori_loop(0, _NUM_HALVINGS, halve, bounds)[0]

    def turn(k, u):
        before, angle = jnp.pi * _RATIO ** (k - 1.0), jnp.pi * _RATIO**k
        u = u + 1j * (angle - before) / equation(u)[1]

        def newton(_, u):
            value, slope = equation(u)
            u = u - (value - jax.lax.complex(x, jnp.full_like(x, angle))) / slope
            return jax.lax.complex(u.real, jnp.clip(u.imag, angle * 0.5, jnp.pi))

        return jax.lax.fori_loop(0, _NUM_CORRECTIONS, newton, u)

    u = jax.lax.complex(start, jnp.full_like(x, jnp.pi))
    u = jax.lax.fori_loop(1, _NUM_ANGLES + 1, turn, u)
    w, _, _ = sums(u)
    ratio = jnp.minimum(t * jnp.exp(-u.real)[:, None], _HUGE)
    angles = jnp.arctan2(jnp.sin(u.imag)[:, None], jnp.cos(u.imag)[:, None] - ratio) @ mass
    log_w = log(w)
    above = (depth * (angles + log_w.imag + g * w.imag) - log_w.imag) / jnp.pi
    residual = equation(u)[0] - jax.lax.complex(x, jnp.full_like(x, _ANGLE))
    return jnp.stack([-w.imag / jnp.pi, above, jnp.abs(residual)])


def _exp(exponent: float) -> float:
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf
