"""What theory predicts of wide residual networks: how signals and gradients grow over their blocks."""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jaxact.numerics import check_count, gaussian_nodes
from jaxact.theory._checks import check_number, check_untraced
from jaxact.theory._integrable import breakpoints, refuse_fast_growth, refuse_unresolved, value_and_slope

Order = Literal["pre", "post"]
Norm = Literal["batch", "layer", "rms"]

# The post-activation walk, in units of the step's standard deviation: beyond 9 lies a mass of 2e-19, and on panels of
# width 3 with 12 nodes a product of two Gaussians of that width is integrated to 1e-12.
_REACH = 9.0
_PANEL = 3.0
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
# Around 0 an activation has features on a scale of its own, whatever the step: panels end here too.
_GRADED = np.concatenate([4.0 ** np.arange(-3, 1), np.arange(3.0, 49.0, 3.0), 4.0 ** np.arange(3, 10)])
_SPLITS = np.concatenate([-_GRADED, [0.0], _GRADED])
_NEGLIGIBLE = 1e-20
_MAX_NODES = 20_000
_CHUNK = 512
_NUM_ENDS = 64
_LARGEST = 1e300
_TABLE_SIZE = 64


class ResidualTrajectory(NamedTuple):
    """Statistics of a residual network's hidden states h_0 (what enters the first block) ... h_depth, in float64.

    Attributes:
        q: second moment of h_l over units and inputs, [depth + 1].
        mean: mean of h_l over units and inputs, [depth + 1].
        batch_variance: variance of a unit of h_l over the inputs of an infinite batch, averaged over units,
            [depth + 1]; NaN unless norm="batch".
        gradient: E |dL/dh_l|^2 / E |dL/dh_depth|^2, [depth + 1]; the last is 1.
        active: P(f' != 0) over units and inputs where block l + 1 applies f, [depth]. A slope that underflows in
            float64 counts as 0, and then the figure is good to 0.01 only.
        skip_open: probability that the skip path through one unit, from h_0 to h_l, passes only points with f' != 0,
            [depth + 1]; 1 in pre-activation networks, whose skip passes no f.
    """

    q: Float[np.ndarray, " layer"]
    mean: Float[np.ndarray, " layer"]
    batch_variance: Float[np.ndarray, " layer"]
    gradient: Float[np.ndarray, " layer"]
    active: Float[np.ndarray, " block"]
    skip_open: Float[np.ndarray, " layer"]


def residual_trajectory(
    activation: Any,
    depth: int,
    *,
    order: Order,
    norm: Norm | None = None,
    q: float = 1.0,
    c: float = 0.0,
    sigma_w: float,
    sigma_b: float = 0.0,
    branch_scale: float = 1.0,
) -> ResidualTrajectory:
    """Follow signals and gradients through `depth` blocks of a wide residual network at initialisation.

        order="pre":   h' = h + a (W f(norm(h)) + b)      He et al. 2016, "Identity mappings in deep residual networks"
        order="post":  h' = f(h + a norm(W h + b))        He et al. 2016, "Deep residual learning"

    with W_ij ~ N(0, sigma_w^2 / width), b_i ~ N(0, sigma_b^2), a = branch_scale: the blocks `PreAct` and `PostAct` of
    jaxact.nn (a = 1). The first state h_0 has Gaussian units of second moment q, as an affine map makes them.

    Pre-activation (Yang & Schoenholz 2017, "Mean field residual networks: on the edge of chaos"; with batch norm De &
    Smith 2020). h stays Gaussian; z ~ N(0, q_l), or N(0, 1) behind a norm:

        q_{l+1} = q_l + a^2 (sigma_w^2 E f(z)^2 + sigma_b^2)
        v_{l+1} = v_l + a^2 sigma_w^2 Var f(z),   v_0 = q (1 - c)
        gradient_l = gradient_{l+1} (1 + a^2 sigma_w^2 E f'(z)^2 / d_l)

    where d_l = 1 without a norm, v_l behind batch norm and q_l behind layer or RMS norm. Batch norm divides by the
    variance over the batch v, not by q: what f adds to all inputs alike is in q only. Behind a norm q grows linearly
    and gradients as a power of depth, E f'^2 / Var f behind batch norm (relu: pi / (pi - 1)); without, exponentially.

    Post-activation. A unit's sum u is not Gaussian; the units are independent copies of one Markov chain

        u_{l+1} = h_l + s_l xi,   h_{l+1} = f(u_{l+1}),   xi ~ N(0, 1) fresh
        s_l^2 = a^2 (sigma_w^2 q_l + sigma_b^2), or a^2 behind a norm

    for relu Lindley's recursion. Its law is carried from block to block by quadrature (Gauss-Legendre panels of 3 s),
    and so is the squared gradient given the unit's state, since that of the skip path depends on it:

        G_l(h) = A_l(h) + b_l E A_l(h_l),   A_l(h) = E [f'(u)^2 G_{l+1}(f(u)) | u = h + s_l xi],   gradient_l = E G_l
        b_l = a^2 sigma_w^2 / d_l,   d_l = 1, sigma_w^2 v_l (batch norm), or sigma_w^2 q_l + sigma_b^2

    All of it is exact at infinite width (behind batch norm: and infinite batch, at epsilon 0) under the usual
    assumption that gradients may be taken as independent of the weights that they pass, as for a loss that reads
    h_depth by independent random weights of mean 0. Numerically exact to about 1e-12 for f as in
    `jaxact.numerics.gaussian_expectation`, whatever JAX's default precision. A batch of B raises the gradient's growth
    in a branch by a share of order 1 / B. Runs on the host.

    Args:
        activation: an `Activation`. Static.
        depth: number of blocks, at least 1.
        order: "pre" or "post".
        norm: None, "batch" (in training mode), "layer" or "rms", with scale 1 and shift 0.
        q: second moment of h_0, positive.
        c: correlation of any two inputs' h_0, in [0, 1); only norm="batch" is concerned.
        sigma_w: weight scale, nonnegative.
        sigma_b: bias scale, nonnegative.
        branch_scale: a, nonnegative; Fixup (Zhang et al. 2019) and others take it as a power of 1 / depth.

    Returns:
        A `ResidualTrajectory`.

    Raises:
        TypeError: `activation` does not know its kinks and derivative.
        ValueError: an argument is out of its range, the second moment leaves float64's range, f oscillates too fast
            (see `moments`), or in a post-activation network the branch is 0 or below about 1/250 of the states' spread.

    Example:
        >>> from jaxact import activations
        >>> found = residual_trajectory(activations.relu, 2, order="pre", norm="batch", sigma_w=2.0**0.5)
        >>> found.q.tolist(), found.batch_variance.round(3).tolist(), found.gradient.round(3).tolist()
        ([1.0, 2.0, 3.0], [1.0, 1.682, 2.363], [3.189, 1.595, 1.0])
    """
    breakpoints(activation)  # a clear error before jit asks for a hash
    refuse_fast_growth(activation)
    depth = check_count("depth", depth)
    if order not in ("pre", "post"):
        raise ValueError(f'`order` must be "pre" or "post", got {order!r}. Pass one of these.')
    if norm not in (None, "batch", "layer", "rms"):
        raise ValueError(f'`norm` must be None, "batch", "layer" or "rms", got {norm!r}. Pass one of these.')
    q, c = check_number("q", q), check_number("c", c)
    sigma_w, sigma_b = check_number("sigma_w", sigma_w), check_number("sigma_b", sigma_b)
    branch_scale = check_number("branch_scale", branch_scale)
    if q == 0:
        raise ValueError("`q` must be positive, got 0. Take a small one for a walk that starts at 0.")
    if c >= 1:
        raise ValueError(f"`c` must lie in [0, 1), got {c}. Inputs that are all alike have no variance.")
    follow = _pre if order == "pre" else _post
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return follow(activation, int(depth), norm, q, c, sigma_w**2, sigma_b**2, branch_scale**2)


def skip_open_probability(n: Int[ArrayLike, "*shape"]) -> float | Float[np.ndarray, "*shape"]:
    """Compute the probability that a post-activation ReLU network's skip path is open after n blocks.

        p_n = C(2n, n) / 4^n = P(S_1 > 0, ..., S_n > 0) ~ 1 / sqrt(pi n)

    In h' = relu(h + y), y the block's branch, the skip path through one unit is open after n blocks if no relu on it
    has clipped: u_1, ..., u_n > 0, u_l = h_{l-1} + y_l. Up to the first clipping u is the random walk S_l = y_1 + ...
    + y_l (afterwards Lindley's recursion), and p_n is Sparre Andersen's law (1954) for walks from 0 whose steps are
    independent of each other, identically distributed, symmetric and continuous: it is 1/2 for n = 1 only. So it holds
    exactly in a wide network with batch norm (scale 1, shift 0; or RMS or layer norm) at the end of the branch, where
    y ~ N(0, 1) is fresh in every block, if the first state is 0: as good as that if it is small beside 1 yet large
    beside the norm's epsilon. Equivalently, behind a stem whose relu counts as the first block, h_1 = relu(y_1).
    Other first states and steps that grow (no norm) have other laws: `residual_trajectory(...).skip_open`.

    Exact to about 1e-15, relative.

    Args:
        n: number of blocks, integer or array of integers, nonnegative; p_0 = 1.

    Returns:
        A Python float, or an array of float64 for an array.

    Raises:
        ValueError: `n` is not an integer or negative.

    Example:
        >>> [skip_open_probability(n) for n in range(4)]
        [1.0, 0.5, 0.375, 0.3125]
    """
    check_untraced("n", n)
    blocks = np.asarray(n)
    if not np.issubdtype(blocks.dtype, np.integer) or (blocks < 0).any():
        raise ValueError(f"`n` must hold nonnegative integers, got {n!r}. Count whole blocks.")
    ratios = 1 - 0.5 / np.arange(1, _TABLE_SIZE)
    table = np.concatenate([[1.0], np.cumprod(ratios)])
    # Gamma(n + 1/2) / Gamma(n + 1) in powers of 1 / (n + 1/4): the first term left out is below 1e-16 here.
    shifted = np.maximum(blocks, _TABLE_SIZE) + 0.25
    inverse = 1 / shifted**2
    series = 1 + inverse * (-1 / 64 + inverse * (21 / 8192 - inverse * 671 / 524288))
    value = np.where(
        blocks < _TABLE_SIZE,
        table[np.minimum(blocks, _TABLE_SIZE - 1)],
        series / np.sqrt(math.pi * shifted),
    )
    return float(value) if np.ndim(n) == 0 else value


def _pre(activation, depth, norm, q, c, w, b, a) -> ResidualTrajectory:
    """w, b and a are the squares of the scales."""
    lengths, variances, factors, active = [q], [q * (1 - c)], [], []
    normed = _moments(activation, 1.0)
    for block in range(depth):
        found = normed if norm else _moments(activation, lengths[-1])
        divisor = {None: 1.0, "batch": variances[-1]}.get(norm, lengths[-1])
        factors.append(1 + a * w * found.squared_slope / divisor)
        active.append(found.active)
        lengths.append(_within_range(lengths[-1] + a * (w * found.second_moment + b), block + 1))
        variances.append(variances[-1] + a * w * found.variance)
    return ResidualTrajectory(
        q=np.array(lengths),
        mean=np.zeros(depth + 1),
        batch_variance=np.array(variances) if norm == "batch" else np.full(depth + 1, np.nan),
        gradient=np.cumprod([1.0, *reversed(factors)])[::-1].copy(),
        active=np.array(active),
        skip_open=np.ones(depth + 1),
    )


class _Moments(NamedTuple):
    second_moment: float
    variance: float
    squared_slope: float
    active: float


def _moments(activation: Any, q: float) -> _Moments:
    """Of f(z) and f'(z), z ~ N(0, q); unlike `moments`, nothing large is compiled anew for every f."""
    refuse_unresolved(activation, q)
    u, weights = (np.asarray(each) for each in _gaussian_nodes(np.array(breakpoints(activation), float), q))
    value, slope = _in_chunks(activation, u)
    return _Moments(
        second_moment=float(weights @ value**2),
        variance=float(weights @ (value - weights @ value) ** 2),
        squared_slope=float(weights @ slope**2),
        active=float(weights @ (slope != 0)),
    )


class _Law(NamedTuple):
    """The law of one unit's state, as masses at nodes; nodes and weights also integrate over u itself."""

    u: np.ndarray  # [node]
    weights: np.ndarray  # [node]
    h: np.ndarray  # [node] f(u)
    squared_slope: np.ndarray  # [node] f'(u)^2
    mass: np.ndarray  # [node]
    open_mass: np.ndarray  # [node] of the walks that passed f' != 0 only
    given: np.ndarray  # [common, node] the mass given what all inputs share


def _post(activation, depth, norm, q, c, w, b, a) -> ResidualTrajectory:
    """Forward: the law. Backward: the squared gradient given the state. w, b and a are squares."""
    c = c if norm == "batch" else 0.0
    common, common_weights = _common(c)
    laws: list[_Law] = []
    lengths: list[float] = []
    variances: list[float] = []
    steps: list[float] = []
    factors: list[float] = []
    for block in range(depth + 1):
        make = (
            partial(_next_law, activation, laws[-1], steps[-1])
            if block
            else partial(_first_law, q, c, common)
        )
        resolution = steps[-1] if block else ((1 - c) * q) ** 0.5
        law = make(resolution)
        lengths.append(_within_range(float(law.mass @ law.h**2), block))
        variances.append(lengths[-1] - float(common_weights @ (law.given @ law.h) ** 2))
        if block < depth:
            step, factor = _branch(activation, block, norm, lengths[-1], variances[-1], w, b, a)
            # The next block asks for the law on the scale of its own step, through f.
            steepest = law.squared_slope[law.mass > _NEGLIGIBLE].max() ** 0.5
            needed = step / max(1.0, steepest)
            law = make(needed) if needed < resolution else law
            steps.append(step)
            factors.append(factor)
        laws.append(law)
    return ResidualTrajectory(
        q=np.array(lengths),
        mean=np.array([0.0, *(each.mass @ each.h for each in laws[1:])]),
        batch_variance=np.array(variances) if norm == "batch" else np.full(depth + 1, np.nan),
        gradient=_gradients(laws, steps, factors),
        active=np.array([each.mass @ (each.squared_slope != 0) for each in laws[1:]]),
        skip_open=np.array([each.open_mass @ (each.squared_slope != 0) for each in laws]),
    )


def _branch(activation, block, norm, length, variance, w, b, a) -> tuple[float, float]:
    """The standard deviation of a block's branch, and the share of the squared gradient that it passes back."""
    if norm == "batch" and not variance > 0:
        raise ValueError(
            f"`activation` must vary over its inputs, got {getattr(activation, 'name', activation)}, which is "
            f"constant at block {block}: batch norm divides by 0."
        )
    branch = w * length + b
    divisor = {None: 1.0, "batch": w * variance}.get(norm, branch)
    if not a * w > 0 and not (norm is None and a * branch > 0):
        raise ValueError(
            '`sigma_w` and `branch_scale` must be positive for order="post" (without a norm sigma_b will do), '
            f"got sigma_w = {w**0.5:g}, branch_scale = {a**0.5:g}: without branches the network is f, repeated."
        )
    return (a if norm else a * branch) ** 0.5, a * w / divisor


def _common(c: float) -> tuple[Float[np.ndarray, " common"], Float[np.ndarray, " common"]]:
    """Nodes and weights for g ~ N(0, 1), what all inputs share in h_0 = sqrt(c q) g + sqrt((1 - c) q) xi."""
    if c == 0:
        return np.zeros(1), np.ones(1)
    g, weights = _panels(-_REACH, _REACH, min(1.0, ((1 - c) / c) ** 0.5), ())
    return g, weights * _gaussian(g, np.zeros(1), 1.0)[:, 0]


def _first_law(q: float, c: float, common: np.ndarray, resolution: float) -> _Law:
    """The law of h_0, at nodes fine enough for functions on the scale `resolution`."""
    h, weights = _panels(-_REACH * q**0.5, _REACH * q**0.5, resolution, ())
    mass = weights * _gaussian(h, np.zeros(1), q**0.5)[:, 0]
    given = weights * _gaussian(h, (c * q) ** 0.5 * common, ((1 - c) * q) ** 0.5).T
    return _Law(h, weights, h, np.ones_like(h), mass, mass, given)


def _next_law(activation: Any, law: _Law, step: float, resolution: float) -> _Law:
    """The law after one block whose branch is N(0, step^2)."""
    refuse_unresolved(activation, (_PANEL * resolution) ** 2)  # panels as wide as a standard deviation there
    keep = law.mass * (1 + law.h**2 / (law.mass @ law.h**2)) > _NEGLIGIBLE
    h = law.h[keep]
    low, high = h.min() - _REACH * step, h.max() + _REACH * step
    u, weights = _panels(low, high, resolution, breakpoints(activation))
    still_open = np.where(law.squared_slope != 0, law.open_mass, 0)
    rows = np.concatenate([law.mass[None], still_open[None], law.given])[:, keep]
    mass, open_mass, *given = _through(rows, h, u, step) * weights
    value, slope = _in_chunks(activation, u)
    return _Law(u, weights, value, slope**2, mass, open_mass, np.array(given))


def _gradients(laws: list[_Law], steps: list[float], factors: list[float]) -> Float[np.ndarray, " layer"]:
    """E |dL/dh_l|^2, the last being 1: the squared gradient given the unit's state, pulled back block by block."""
    given_state = np.ones_like(laws[-1].h)
    gradients = [1.0]
    for index in reversed(range(len(steps))):
        before, after = laws[index], laws[index + 1]
        integrand = after.weights * after.squared_slope * given_state
        skip = _through(integrand[None], after.u, before.h, steps[index])[0]
        branch = factors[index] * (before.mass @ skip)
        given_state = skip + branch
        gradients.append(float(before.mass @ given_state))
    return np.array(gradients[::-1])


def _panels(
    low: float, high: float, step: float, points: tuple[float, ...]
) -> tuple[Float[np.ndarray, " node"], Float[np.ndarray, " node"]]:
    """Gauss-Legendre nodes and weights on panels no wider than 3 steps that end at `points`."""
    num_panels = math.ceil((high - low) / (_PANEL * step))
    if num_panels * len(_NODES) > _MAX_NODES:
        raise ValueError(
            f"`branch_scale` must leave the branch visible beside the states, got a branch of size {step:.3g} where "
            f"states span {high - low:.3g}. Take a larger one (or a smaller c or q)."
        )
    splits = np.concatenate([_SPLITS, points])
    splits = splits[(splits > low) & (splits < high)]
    ends = np.unique(np.concatenate([np.linspace(low, high, num_panels + 1), splits]))
    half = np.diff(ends)[:, None] / 2
    return (ends[:-1, None] + half * (1 + _NODES)).reshape(-1), (half * _WEIGHTS).reshape(-1)


def _through(
    rows: Float[np.ndarray, "row node"], start: Float[np.ndarray, " node"], end: np.ndarray, step: float
) -> Float[np.ndarray, "row end"]:
    """sum_k rows[:, k] N(end; start_k, step^2), leaving out pairs that lie more than 9 steps apart."""
    order = np.argsort(start, kind="stable")
    start, rows = start[order], rows[:, order]
    order = np.argsort(end, kind="stable")
    result = np.empty((len(rows), len(end)))
    for chunk in np.array_split(order, -(-len(end) // _NUM_ENDS)):
        near = [end[chunk[0]] - _REACH * step, end[chunk[-1]] + _REACH * step]
        low, high = np.searchsorted(start, near)
        result[:, chunk] = rows[:, low:high] @ _gaussian(end[chunk], start[low:high], step).T
    return result


def _gaussian(x: np.ndarray, mean: np.ndarray, deviation: float) -> Float[np.ndarray, "x mean"]:
    """The Gaussian density of every x about every mean."""
    z = (x[:, None] - mean) / deviation
    return np.exp(-(z**2) / 2) / (deviation * math.sqrt(2 * math.pi))


def _in_chunks(activation: Any, u: Float[np.ndarray, " node"]) -> tuple[np.ndarray, ...]:
    padded = np.pad(u, (0, -len(u) % _CHUNK))  # few shapes to compile
    return tuple(each[: len(u)] for each in value_and_slope(activation, padded))


@jax.jit
def _gaussian_nodes(points: Array, q: ArrayLike) -> tuple[Array, Array]:
    return gaussian_nodes(points, 0.0, q)


def _within_range(length: float, block: int) -> float:
    if not length < _LARGEST:
        raise ValueError(
            f"`depth` must end before the second moment leaves the range of float64, which it does at block {block}. "
            "Take fewer blocks, a smaller branch_scale or a norm."
        )
    return length
