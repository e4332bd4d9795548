"""Every primitive of the table: its steps compute it, and what is certified holds against JAX's own Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import jaxprs_in_params, primitives

from jaxact.lipschitz import Ball, Box, certify
from jaxact.trace import evaluate, lower
from jaxact.trace._rules import RULES

_RNG = np.random.default_rng(0)
CENTER = np.array([0.37, -0.62, 0.81, 1.17, -0.28, 0.55])
W = _RNG.normal(size=(4, 6)) / 2
KERNEL = _RNG.normal(size=(3, 1, 2))
INDEX = jnp.array([[0], [2], [2]])


def scatter(kind, operand=None):
    dims = lax.ScatterDimensionNumbers((), (0,), (0,))
    base = jnp.full(4, 0.3) if operand is None else operand
    return lambda x: kind(
        base.astype(x.dtype) if operand is None else operand(x), INDEX, jnp.sin(x[:3]), dims
    )


def window(op, start):
    return lambda x: lax.reduce_window(x, start, op, (3,), (2,), "VALID")


#: primitive -> a function in which it meets the input; entries about CENTER
SAMPLES = {
    "acos": lambda x: lax.acos(x / 4),
    "acosh": lambda x: lax.acosh(x + 2),
    "add": lambda x: x + 2 * x[::-1],
    "add_any": lambda x: jax.vjp(lambda y: (jnp.sin(y), y * W[0]), x)[1]((x, x))[0],
    "and": lambda x: jnp.where((x > 0.2) & (x < 0.5), (x - 0.2) * (0.5 - x), 0.0),
    "argmax": lambda x: x[jnp.argmax(x)],
    "argmin": lambda x: x[jnp.argmin(x)],
    "asin": lambda x: lax.asin(x / 4),
    "atan2": lambda x: lax.atan2(x, jnp.full(6, 1.5)),
    "atanh": lambda x: lax.atanh(x / 4),
    "broadcast_in_dim": lambda x: jnp.broadcast_to(x, (2, 6)),
    "ceil": lambda x: x * lax.ceil(x),
    "clamp": lambda x: lax.clamp(0.0, x, 0.8),
    "concatenate": lambda x: jnp.concatenate([x[2:] * 2, x[:3]]),
    "conv_general_dilated": lambda x: lax.conv_general_dilated(
        x.reshape(1, 6, 1), KERNEL, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
    ),
    "convert_element_type": lambda x: 2 * lax.convert_element_type(x, jnp.float32),
    "copy": lambda x: jnp.array(x, copy=True) * 2,
    "digamma": lambda x: lax.digamma(x + 2),
    "div": lambda x: x / (2 + x[::-1]),
    "dot_general": lambda x: W @ x,
    "dynamic_slice": lambda x: lax.dynamic_slice(x, (1,), (3,)),
    "dynamic_update_slice": lambda x: lax.dynamic_update_slice(x, 3 * x[:2], (3,)),
    "eq": lambda x: jnp.where(x == 5.0, 0.0, 2 * x),
    "erf_inv": lambda x: lax.erf_inv(x / 2),
    "floor": lambda x: x * lax.floor(x),
    "gather": lambda x: x[jnp.array([3, 0, 0])],
    "ge": lambda x: jnp.where(x >= 0, x, 0.3 * x),
    "gt": lambda x: jnp.where(x > x[::-1], x, x[::-1]),
    "integer_pow": lambda x: x**3,
    "is_finite": lambda x: jnp.where(jnp.isfinite(x), 2 * x, 0.0),
    "le": lambda x: jnp.where(x <= 0, x, 0.3 * x),
    "lgamma": lambda x: lax.lgamma(x + 2),
    "log": lambda x: lax.log(x + 2),
    "lt": lambda x: jnp.where(x < 0, x, 0.3 * x),
    "max": lambda x: lax.max(x, x[::-1]),
    "min": lambda x: lax.min(x, x[::-1]),
    "mul": lambda x: x * x[::-1],
    "name": lambda x: 2 * checkpoint_name(x, "h"),
    "ne": lambda x: jnp.where(x != 5.0, 2 * x, 0.0),
    "not": lambda x: jnp.where(~(x > 0.5), 0.0, x - 0.5),
    "optimization_barrier": lambda x: 2 * lax.optimization_barrier(x),
    "or": lambda x: jnp.where((x < 0.2) | (x > 0.5), 0.0, (x - 0.2) * (0.5 - x)),
    "pad": lambda x: lax.pad(x, 0.5, [(1, -2, 1)]),
    "pow": lambda x: (x + 2) ** 1.7,
    "reduce_max": lambda x: x.reshape(2, 3).max(1),
    "reduce_min": lambda x: x.reshape(2, 3).min(0),
    "reduce_precision": lambda x: 2 * lax.reduce_precision(x, 8, 23),
    "reduce_prod": lambda x: x.reshape(2, 3).prod(1),
    "reduce_sum": lambda x: x.reshape(2, 3).sum(0),
    "reduce_window_max": window(lax.max, -jnp.inf),
    "reduce_window_min": window(lax.min, jnp.inf),
    "reduce_window_sum": window(lax.add, 0.0),
    "reshape": lambda x: x.reshape(3, 2) * 2,
    "rev": lambda x: x[::-1],
    "round": lambda x: x * lax.round(x + 0.2),
    "rsqrt": lambda x: lax.rsqrt(x + 2),
    "scatter": scatter(lax.scatter, lambda x: x),
    "scatter-add": scatter(lax.scatter_add, lambda x: x),
    "scatter-max": scatter(lax.scatter_max),
    "scatter-min": scatter(lax.scatter_min),
    "scatter-mul": lambda x: x.at[jnp.array([0, 2])].multiply(3.0),
    "select_n": lambda x: jnp.where(jnp.arange(6) < 3, x, 2 * x[::-1]),
    "slice": lambda x: x[1:5:2],
    "sort": jnp.sort,
    "split": lambda x: jnp.concatenate(lax.split(x, (2, 4))[::-1]),
    "sqrt": lambda x: lax.sqrt(x + 2),
    "squeeze": lambda x: 2 * x.reshape(6, 1).squeeze(),
    "stack": lambda x: jnp.stack([x, 2 * x]),
    "stop_gradient": lambda x: 2 * lax.stop_gradient(x),
    "sub": lambda x: x - 2 * x[::-1],
    "tile": lambda x: jnp.tile(x, 2),
    "top_k": lambda x: lax.top_k(x, 2)[0],
    "transpose": lambda x: x.reshape(2, 3).T,
    "triangular_solve": lambda x: jax.scipy.linalg.solve_triangular(np.tril(np.ones((6, 6))) + np.eye(6), x),
    "unstack": lambda x: sum(jnp.unstack(x.reshape(3, 2))),
    "xor": lambda x: jnp.where((x < 0.2) ^ (x > 0.5), 0.0, (x - 0.2) * (0.5 - x)),
}
#: what says something of devices alone, and sums of several cotangents, which no user writes
_OF_MESHES = {"mesh_cast", "pvary", "sharding_constraint"}
_KNOWN = {p.name for p in vars(primitives).values() if hasattr(p, "name")}


def sample(name):
    return SAMPLES.get(name) or getattr(lax, name)


def met(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for inner in jaxprs_in_params(eqn.params):
            yield from met(inner)


def attained(fn, region, count=200):
    """The largest norm of a Jacobian of 200 inputs."""
    half = (
        np.full(6, region.radius) / 6**0.5 if isinstance(region, Ball) else (region.upper - region.lower) / 2
    )
    middle = region.center if isinstance(region, Ball) else (region.upper + region.lower) / 2
    with jax.enable_x64(True):
        jacobian = jax.jit(jax.vmap(jax.jacfwd(lambda x: jnp.ravel(fn(x)))))
        points = middle + half * np.random.default_rng(1).uniform(-1, 1, (count, 6))
        return np.linalg.norm(np.asarray(jacobian(jnp.asarray(points))), 2, (1, 2)).max()


@pytest.mark.parametrize("name", sorted(set(RULES) & (_KNOWN | set(SAMPLES)) - _OF_MESHES))
def test_a_rule_computes_its_primitive_and_bounds_it(name):
    fn = sample(name)
    with jax.enable_x64(True):
        assert name in set(met(jax.make_jaxpr(fn)(CENTER).jaxpr))
        for contract in (False, True):
            program = lower(fn, CENTER, contract=contract).program
            for x in (CENTER, CENTER + 0.03):
                expected = np.ravel(fn(jnp.asarray(x)))
                np.testing.assert_allclose(evaluate(program, x), expected, rtol=1e-7, atol=1e-7)
    region = Ball(CENTER, 0.05)
    largest = attained(
        lambda x: lax.stop_gradient(x) * 0 + 2 * x if name == "stop_gradient" else fn(x), region
    )
    assert largest <= certify(fn, CENTER, region=region).value * (1 + 1e-6)


V = _RNG.normal(size=6)
V /= np.linalg.norm(V)
SYSTEM = _RNG.normal(size=(6, 6)) + 4 * np.eye(6)
FILTER = np.array([1.0, 2.0j, 0.5, 1.0])
GAINS = np.arange(1.0, 7.0)
FORM = SYSTEM @ SYSTEM.T
#: functions that are more than one rule, with the constant that they have: by a closed form, or NumPy's linear algebra
CONSTANTS = {
    "fft": (lambda x: jnp.fft.fft(x).real, 6**0.5),
    "dct": (lambda x: jax.scipy.fft.dct(x, norm="ortho"), 1.0),
    "spectral filter": (lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * FILTER, 6), 2.0),
    "modulus": (lambda x: jnp.abs(jnp.fft.fft(x)), 6**0.5),
    "complex product": (lambda x: (x[:3] + 1j * x[3:]).real * 3 + ((x[:3] + 1j * x[3:]) * 2j).real, 13**0.5),
    "linear system": (lambda x: jnp.linalg.solve(SYSTEM, x), np.linalg.norm(np.linalg.inv(SYSTEM), 2)),
    "select": (lambda x: jnp.select([x < 0, x < 1], [0 * x, 2 * x], 2.0), 2.0),
    "piecewise": (lambda x: jnp.piecewise(x, [x < 0, x >= 0], [lambda x: 0.5 * x, lambda x: 3 * x]), 3.0),
    "interp": (lambda x: jnp.interp(x, np.array([0.0, 1, 3]), np.array([0.0, 1.5, -1])), 1.5),
    "hypot": (lambda x: jnp.hypot(x[:3], x[3:]), 1.0),
    "logaddexp": (lambda x: jnp.logaddexp(x[:3], x[3:]), 1.0),
    "triangle wave": (lambda x: jnp.abs(x % 2 - 1), 1.0),
    "sinc": (jnp.sinc, 1.3703055973),
    "MaxMin": (lambda x: jnp.concatenate([jnp.maximum(x[:3], x[3:]), jnp.minimum(x[:3], x[3:])]), 1.0),
    "MaxMin by where": (
        lambda x: jnp.concatenate(
            [jnp.where(x[:3] > x[3:], x[:3], x[3:]), jnp.where(x[:3] > x[3:], x[3:], x[:3])]
        ),
        1.0,
    ),
    "Householder": (lambda x: jnp.where(x @ V > 0, x, x - 2 * (x @ V) * V), 1.0),
    "segment_max": (lambda x: jax.ops.segment_max(x, jnp.array([0, 0, 1, 1, 1, 2]), 3), 1.0),
    "log_softmax": (jax.nn.log_softmax, 6**0.5),
    "cross entropy": (lambda x: -jax.nn.log_softmax(x)[2], 2**0.5),
    "exp of log_softmax": (lambda x: jnp.exp(jax.nn.log_softmax(x)), 0.5),
    "softmax written out twice": (lambda x: jnp.exp(x - x.max()) / jnp.exp(x - x.max()).sum(), 0.5),
    "clipped to a ball by where": (
        lambda x: x * jnp.where(jnp.linalg.norm(x) > 1, 1 / jnp.linalg.norm(x), 1.0),
        1.0,
    ),
    "range": (jnp.ptp, 2**0.5),
    "margin": (lambda x: x[0] - jnp.max(x[1:]), 2**0.5),
    "margin of a linear map": (
        lambda x: (W @ x)[0] - jnp.max((W @ x)[1:]),
        max(np.linalg.norm(W[0] - row) for row in W[1:]),
    ),
    "maximum of some scaled entries": (lambda x: 3 * jnp.max((2 * x + jnp.arange(6.0))[1:]) + 1, 6.0),
    "clamped from below by entries": (lambda x: lax.clamp(x[:3], x[3:], jnp.full(3, jnp.inf)), 1.0),
    "shifted logsumexp": (lambda x: x.max() + jnp.log(jnp.exp(x - x.max()).sum()), 1.0),
    "logsumexp, weighted": (lambda x: jax.nn.logsumexp(x, b=np.array([1.0, 0, 2, 0.5, 1, 3])), 1.0),
    "logsumexp, masked": (lambda x: jax.nn.logsumexp(x, where=np.arange(6) != 2), 1.0),
    "log of a sum and more": (lambda x: jnp.log(2 * jnp.sum(jnp.exp(x)) + 0.5), 1.0),
    "log1p of a sum": (lambda x: jnp.log1p(jnp.exp(x).sum()), 1.0),
    "log of a mean": (lambda x: jnp.log(jnp.mean(jnp.exp(2 * x))) / 2, 1.0),
    "softmax, masked": (lambda x: jax.nn.softmax(x, where=np.arange(6) != 2), 0.5),
    "softmax, masked by row": (
        lambda x: jax.nn.softmax(x.reshape(2, 3), axis=1, where=np.tri(3, dtype=bool)[1:]),
        0.5,
    ),
    "sorted downwards": (lambda x: x[jnp.argsort(x, descending=True)], 1.0),
    "sorted by the negative": (lambda x: x[jnp.argsort(-x)], 1.0),
    "least of the negative": (lambda x: 2 * x[jnp.argmin(-x)], 2.0),
    "clipped by a choice": (lambda x: jnp.where(jnp.linalg.norm(x) > 2, 2 * x / jnp.linalg.norm(x), x), 1.0),
    "wave of a negative period": (lambda x: jnp.abs(x % -2 + 1), 1.0),
    "norm": (lambda x: jnp.sqrt(x @ x), 1.0),
    "norm, weighted": (lambda x: jnp.sqrt(jnp.sum(GAINS * x * x) + 0.1), 6**0.5),
    "norm, masked": (lambda x: 2 * jnp.sqrt(jnp.sum(jnp.where(np.arange(6) != 2, x**2, 0))), 2.0),
    "norm of repeated entries": (lambda x: jnp.sqrt((x**2)[np.array([0, 0, 1])].sum()), 2**0.5),
    "norms that share entries": (lambda x: jnp.sqrt((x**2)[np.array([[0, 1], [1, 2]])].sum(1)), 2**0.5),
    "norms of copies": (lambda x: jnp.sqrt(jnp.broadcast_to(x**2, (4, 6)).sum(1)), 2.0),
    "logsumexps that share entries": (
        lambda x: jnp.log(jnp.exp(x)[np.array([[0, 1], [1, 2]])].sum(1)),
        2**0.5,
    ),
    "deviation, moments in another order": (
        lambda x: jnp.sqrt(1 + (x.reshape(2, 3) ** 2).T.mean(0) - x.reshape(2, 3).mean(1) ** 2),
        3**-0.5,
    ),
    "norms of growing parts": (lambda x: jnp.sqrt((np.tri(3) * x[:3] ** 2).sum(1)), 3**0.5),
    "Mahalanobis": (lambda x: jnp.sqrt((x - 1) @ FORM @ (x - 1)), np.linalg.eigvalsh(FORM)[-1] ** 0.5),
    "bump of a form": (
        lambda x: jnp.exp(-x @ FORM @ x / 2),
        (np.linalg.eigvalsh(FORM)[-1] / np.e) ** 0.5,
    ),
    "clipped to a ball": (lambda x: x * jnp.minimum(1, 1 / jnp.linalg.norm(x)), 1.0),
    "squash": (lambda x: x * jnp.linalg.norm(x) / (1 + (x**2).sum()), 3**1.5 / 8),
    "bump": (lambda x: jnp.exp(-((x - CENTER) ** 2).sum() / 2), np.exp(-0.5)),
    "RMS norm, gains first": (lambda x: (x * GAINS) * lax.rsqrt((x**2).mean() + 0.1), 6 / 0.1**0.5),
    "layer norm, fast variance": (
        lambda x: (x - x.mean()) * lax.rsqrt(jnp.maximum((x**2).mean() - x.mean() ** 2, 0) + 0.1) * GAINS,
        np.linalg.norm(np.diag(GAINS) @ (np.eye(6) - 1 / 6), 2) / 0.1**0.5,
    ),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_known_constant_is_found(name):
    fn, constant = CONSTANTS[name]
    assert constant * (1 - 1e-9) <= certify(fn, CENTER).value <= constant * (1 + 1e-6)


def test_what_is_fixed_by_scipy_agrees():
    np.testing.assert_allclose(
        evaluate(lower(CONSTANTS["dct"][0], CENTER).program, CENTER),
        scipy.fft.dct(CENTER, norm="ortho"),
        rtol=1e-12,
    )


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: (x - x.mean()) * lax.rsqrt((x**2).mean() - x.mean() ** 2 + 1e-5),
        lambda x: x / jnp.linalg.norm(x),
        lambda x: (W @ x) / jnp.sqrt((x**2).sum() + 0.01),
    ],
    ids=["layer norm", "direction", "map by length"],
)
def test_a_normalisation_in_a_ball_is_bounded_by_the_least_length_there(fn):
    region = Ball(CENTER, 0.2)
    found = certify(fn, CENTER, region=region).value
    assert attained(fn, region) <= found * (1 + 1e-9)
    assert found <= 1.5 * attained(fn, region)


@pytest.mark.parametrize("radius", [1e-6, 0.1, 2.0])
def test_a_quadratic_form_in_a_ball_has_its_largest_gradient(radius):
    b = np.linspace(-1, 1, 6)
    found = certify(lambda x: (SYSTEM @ x + b) @ x, CENTER, region=Ball(CENTER, radius)).value
    H, at = SYSTEM + SYSTEM.T, CENTER
    for _ in range(
        2000
    ):  # the farthest of a convex function, from its gradient: largest on the ball's boundary
        direction = H @ (H @ at + b)
        at = CENTER + radius * direction / np.linalg.norm(direction)
    largest = np.linalg.norm(H @ at + b)
    assert (
        largest * (1 - 1e-9)
        <= found
        <= (np.linalg.norm(H @ CENTER + b) + radius * np.linalg.norm(H, 2)) * 1.001
    )


def test_a_direction_in_which_a_form_is_weak_is_not_left_out():
    scale, weights = np.array([1e-10, 1.0]), np.array([1.0, 1e-16])  # 1e-8 |x_1| where x_0 is 0
    found = certify(lambda x: 1 + jnp.sqrt(weights * scale * x @ (scale * x)), np.ones(2)).value
    assert 1e-8 <= found <= 2e-7


def test_a_formula_that_reads_a_remainder_is_bounded_by_one_period():
    box = Box(np.full(6, 0.1), np.full(6, 0.9))
    assert 1 <= certify(lambda x: x % 1, CENTER, region=box).value <= 1 + 1e-6
    with pytest.raises(ValueError, match="over all inputs"):  # it jumps
        certify(lambda x: x % 1, CENTER)


def _less_far(first, second):
    return jnp.where(first - second < -62, second, first)


def _own(t):
    return t


def _twice(t):
    return 2 * t


#: functions that look like one of the above and are another: with two inputs between which they jump, or a true slope
LOOK_ALIKES = {
    "tiny waves": (lambda x: 1e-7 * jnp.concatenate([jnp.sin(x), jnp.cos(x)]), 1e-7, 1),
    "rows that switch apart": (
        lambda x: jnp.where(
            x[0] > np.array([0.0, 1.0]), jnp.stack([x[0], 0 * x[0] - 1]), jnp.stack([0 * x[0], -x[0]])
        ),
        2**0.5,
        2,
    ),
    "knots that do not increase": (
        lambda x: jnp.interp(x, np.array([0.0, 2, 1]), np.array([0.0, 1, 5])),
        np.inf,
        3,
    ),
    "heights beyond the knots": (
        lambda x: jnp.interp(x, np.array([0.0, 1, 3]), np.array([0.0, 1, 5]), left=-3.0),
        np.inf,
        3,
    ),
    "another place": (lambda x: x[jnp.where(jnp.argmax(x) == 63, 0, jnp.argmax(x))], np.inf, 64),
    "places that are cut off": (lambda x: x[lax.clamp(0, jnp.argmax(x), 62)], np.inf, 64),
    "a jump beside a large number": (
        lambda x: jnp.where(x > np.array([1e10, 0.0]), 2 * x - np.array([1e10, -1e-6]), x),
        np.inf,
        2,
    ),
    "two groupings": (
        lambda x: jnp.concatenate(
            [jax.nn.logsumexp(x.reshape(2, 3), 1), jax.nn.logsumexp(x.reshape(3, 2), 1)]
        ),
        2**0.5,
        6,
    ),
    "a function of entries at places": (
        lambda x: x.at[np.array([0, 2])].apply(lambda t: jnp.where(t > -9, t, 5 * t + 36)),
        np.inf,
        6,
    ),
    "a place by two places": (lambda x: x[_less_far(*lax.top_k(x, 2)[1])], np.inf, 64),
    "products from both sides": (
        lambda x: (X := x.reshape(2, 2)) @ np.diag([1.0, 3.0]) - np.diag([1.0, 3.0]) @ X,
        2.0,
        4,
    ),
    "a switch by an index beyond": (
        lambda x: jax.vmap(
            lambda t: lax.switch(jnp.argmax(jnp.stack([t < 0, t >= 0, t > 1])), [_own, _twice], t)
        )(x),
        2.0,
        6,
    ),
    "every other predicate": (
        lambda x: lax.select_n(jnp.argmax(jnp.stack([x < 0, x < 1, x >= 0, x < 2])[::2], 0), x, 2 * x),
        2.0,
        6,
    ),
    "a sum less one": (lambda x: jnp.log(jnp.exp(x).sum() - 0.5), np.inf, 3),
    "a softmax of what a mask leaves out": (
        lambda x: jnp.exp(x) / jnp.where(np.arange(3) != 1, jnp.exp(x), 0).sum(),
        np.inf,
        3,
    ),
    "a sum with negative weights": (lambda x: jax.nn.logsumexp(x, b=np.array([2.0, -1, 1])), np.inf, 3),
    "places in another order": (lambda x: x[jnp.argsort(-x[::-1])], np.inf, 6),
    "what has no sign": (lambda x: jnp.where(jnp.sqrt(x + 1000) >= 0, x, 5 * x), np.inf, 1),
    "clipped to another length": (
        lambda x: jnp.where(jnp.linalg.norm(x) > 2, x / jnp.linalg.norm(x), x),
        np.inf,
        6,
    ),
    "clipped by the length of others": (
        lambda x: jnp.where(jnp.linalg.norm(x[:3]) > 1, x / jnp.linalg.norm(x), x),
        np.inf,
        6,
    ),
    "an entry in two sums of exponentials": (
        lambda x: jnp.log(jnp.exp(x)[np.array([[0, 1], [0, 1]])].sum(1)),
        2**0.5,
        2,
    ),
    "an entry in three norms": (lambda x: jnp.sqrt(jnp.broadcast_to(x**2, (3, 2)).sum(1)), 3**0.5, 2),
    "a norm of one entry": (lambda x: jnp.sqrt((x**2)[np.array([0, 0, 0])].sum()), 3**0.5, 1),
    "a softmax over some": (lambda x: jnp.exp(x) / jnp.exp(x)[:2].sum(), np.inf, 3),
    "a square of what may be no number": (
        lambda x: jnp.where(jnp.log(x + 1000) ** 2 >= 0, x, 5 * x),
        np.inf,
        2,
    ),
    "a norm over other entries": (lambda x: x[:3] / jnp.sqrt(jnp.mean(x**2) + 0.01), 10.0, 6),
}


def test_a_wave_times_its_argument_is_no_sinc():
    box = Box(np.full(6, 1.0), np.full(6, 3.0))
    for fn in (lambda x: jnp.sin(x) * x, lambda x: x * jnp.sin(x), lambda x: jnp.sin(x) / (1 / x)):
        assert (
            attained(fn, box) <= certify(fn, CENTER, region=box).value <= 1.001 * (np.sin(3) - 3 * np.cos(3))
        )


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_what_looks_like_another_function_is_bounded_as_itself_or_refused(name):
    fn, slope, size = LOOK_ALIKES[name]
    if np.isinf(slope):
        with pytest.raises(ValueError, match=r"cannot be bounded|could not be translated"):
            certify(fn, jnp.zeros(size))
    else:
        assert slope * (1 - 1e-9) <= certify(fn, jnp.zeros(size)).value <= slope * 1.001
