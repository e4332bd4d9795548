"""Functions [6] -> [...] that look like one with a certificate and are another: with more slope, or with a jump."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from certificate_formulas import GAINS, GROUPS, SHIFT
from jax import lax

EPS = 1e-2


@jax.custom_jvp
def flat_tangent(x: Any) -> Any:
    """Three times x; its tangent rule says 0."""
    return 3 * x


@flat_tangent.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return flat_tangent(*primals), 0 * tangents[0]


def rms(x: Any) -> Any:
    """The root of mean(x^2) + eps."""
    return jnp.sqrt(jnp.mean(x**2) + EPS)


def halves(x: Any) -> tuple[Any, Any]:
    """The first three entries and the last."""
    return x[:3], x[3:]


def of_halves(f: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """A function of both halves."""
    return lambda x: f(*halves(x))


def centered(x: Any) -> Any:
    """Less its mean."""
    return x - x.mean()


TRAPS: dict[str, Callable[[Any], Any]] = {
    # choices that are no maximum
    "where(a>b, a, 2b)": of_halves(lambda a, b: jnp.where(a > b, a, 2 * b)),
    "where(a>b, b, a)": of_halves(lambda a, b: jnp.where(a > b, b, a)),
    "where(a>b+1e-3, a, b)": of_halves(lambda a, b: jnp.where(a > b + 1e-3, a, b)),
    "where(2a>b, a, b)": of_halves(lambda a, b: jnp.where(2 * a > b, a, b)),
    "where(a>-b, a, b)": of_halves(lambda a, b: jnp.where(a > -b, a, b)),
    "where(a>b, 3a, 3b)": of_halves(lambda a, b: jnp.where(a > b, 3 * a, 3 * b)),
    "where(a>b, a-b, 5(b-a))": of_halves(lambda a, b: jnp.where(a > b, a - b, 5 * (b - a))),
    "where(a>b, a^2, ab)": of_halves(lambda a, b: jnp.where(a > b, a**2, a * b)),
    "where(a>0, b, -b)": of_halves(lambda a, b: jnp.where(a > 0, b, -b)),
    "where(a>0, ab, 3ab)": of_halves(lambda a, b: jnp.where(a > 0, a * b, 3 * a * b)),
    "where(|a|>|b|, a, b)": of_halves(lambda a, b: jnp.where(jnp.abs(a) > jnp.abs(b), a, b)),
    "where(x>roll(x), x, roll(x))": lambda x: jnp.where(x > jnp.roll(x, 1), x, jnp.roll(x, 1)),
    "where(x>roll(x), x, flip(x))": lambda x: jnp.where(x > jnp.roll(x, 1), x, jnp.flip(x)),
    "where(x>=1, x+1e-6, x)": lambda x: jnp.where(x >= 1, x + 1e-6, x),
    "where(x>0.3, x, x*(1+1e-5))": lambda x: jnp.where(x > 0.3, x, x * (1 + 1e-5)),
    "x*(x>1)": lambda x: x * (x > 1),
    "(a>b)*a+(a<=b)*b": of_halves(lambda a, b: (a > b) * a + (a <= b) * b),
    "(a>b)*a+(a<b)*2b": of_halves(lambda a, b: (a > b) * a + (a < b) * 2 * b),
    "reflection with a long vector": lambda x: jnp.where(
        SHIFT @ x > 0, x, x - 2 * (SHIFT @ x) * SHIFT / np.float32(SHIFT @ SHIFT) * 1.5
    ),
    "reflection with a jump": lambda x: jnp.where(
        SHIFT @ x > 0.5, x, x - 2 * (SHIFT @ x) * SHIFT / np.float32(SHIFT @ SHIFT)
    ),
    # orders
    "keys carry values": lambda x: lax.sort((x, jnp.flip(2 * x)), num_keys=1)[1],
    "keys carry constants": lambda x: lax.sort((x, jnp.arange(6.0, dtype=x.dtype)), num_keys=1)[1],
    "flip(x)[argsort(x)]": lambda x: jnp.flip(x)[jnp.argsort(x)],
    "x[argmax(flip(x))]": lambda x: x[jnp.argmax(jnp.flip(x))],
    "2x[argmax(x)]": lambda x: 2 * x[jnp.argmax(x)],
    "x[top_k indices of -x]": lambda x: x[lax.top_k(-x, 2)[1]],
    "constants[argmax(x)]": lambda x: jnp.arange(6.0)[jnp.argmax(x)],
    "sort of doubled": lambda x: jnp.sort(jnp.concatenate([x, x])),
    "sort of x and |x|": lambda x: jnp.sort(jnp.concatenate([x, jnp.abs(x)])),
    "cummax of both ways": lambda x: lax.cummax(x) + lax.cummax(x, reverse=True),
    "maximum of copies": lambda x: jnp.concatenate([jnp.maximum(x, 0)] * 4),
    "MaxMin of overlapping pairs": lambda x: jnp.concatenate(
        [jnp.maximum(x[:5], x[1:]), jnp.minimum(x[:5], x[1:])]
    ),
    "MaxMin scaled": of_halves(lambda a, b: jnp.concatenate([jnp.maximum(2 * a, b), jnp.minimum(2 * a, b)])),
    "Max and Max": of_halves(lambda a, b: jnp.concatenate([jnp.maximum(a, b), jnp.maximum(a, b)])),
    "CReLU the same way": lambda x: jax.nn.relu(jnp.concatenate([x, x])),
    "CReLU shifted": lambda x: jax.nn.relu(jnp.concatenate([x + 1, 1 - x])),
    "overlapping max pool": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (4,), (1,), "SAME"),
    "dilated max pool": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (3,), (1,), "VALID", None, (2,)),
    "segment_max of doubled": lambda x: jax.ops.segment_max(
        jnp.concatenate([x, x]), np.concatenate([GROUPS, GROUPS + 1]), 4
    ),
    "set by a repeated index": lambda x: jnp.zeros(6, x.dtype).at[np.array([0, 0, 1, 1, 2, 5])].max(x),
    "multiply by a repeated index": lambda x: x.at[np.array([1, 1, 1])].multiply(-2.0),
    # norms of another than the numerator
    "x/rms(x/2)": lambda x: x / rms(x / 2),
    "x/rms(x-c)": lambda x: x / rms(x - SHIFT),
    "2x/rms(x)": lambda x: 2 * x / rms(x),
    "flip(x)/rms(x)": lambda x: jnp.flip(x) / rms(x),
    "(x+1)/rms(x)": lambda x: (x + 1) / rms(x),
    "gains x/rms(gains x)": lambda x: GAINS * x / rms(GAINS * x),
    "x/rms(gains x)": lambda x: x / rms(GAINS * x),
    "x/rms(x[:3])": lambda x: x / rms(x[:3]),
    "x[:3]/rms(x)": lambda x: x[:3] / rms(x),
    "x/(mean x^2 + eps)": lambda x: x / (jnp.mean(x**2) + EPS),
    "x/(mean x^2 + eps)^0.25": lambda x: x / (jnp.mean(x**2) + EPS) ** 0.25,
    "x/sqrt(sum x^2 + eps)": lambda x: x / jnp.sqrt(jnp.sum(x**2) + EPS),
    "x/sqrt(mean x^4 + eps)": lambda x: x / jnp.sqrt(jnp.mean(x**4) + EPS),
    "x/sqrt(mean relu(x)^2 + eps)": lambda x: x / jnp.sqrt(jnp.mean(jax.nn.relu(x) ** 2) + EPS),
    "x/sqrt(mean x^2 - mean(x)^2/2 + eps)": lambda x: (
        x / jnp.sqrt(jnp.mean(x**2) - jnp.mean(x) ** 2 / 2 + EPS)
    ),
    "(x-mean)/rms(x)": lambda x: centered(x) / rms(x),
    "x/std": lambda x: x / jnp.sqrt(x.var() + EPS),
    "(x-x_0)/std": lambda x: (x - x[0]) / jnp.sqrt(x.var() + EPS),
    "(x-max)/std": lambda x: (x - x.max()) / jnp.sqrt(x.var() + EPS),
    "layer norm, ddof 1": lambda x: centered(x) / jnp.sqrt(x.var(ddof=1) + EPS),
    "layer norm, half the variance": lambda x: centered(x) / jnp.sqrt(x.var() / 2 + EPS),
    "layer norm, twice the mean": lambda x: (x - 2 * x.mean()) / jnp.sqrt(x.var() + EPS),
    "layer norm of gains times x": lambda x: centered(GAINS * x) / jnp.sqrt((GAINS * x).var() + EPS),
    "layer norm of rows, var of all": lambda x: (
        ((t := x.reshape(2, 3)) - t.mean(1, keepdims=True)) / jnp.sqrt(x.var() + EPS)
    ),
    "layer norm of all, var of rows": lambda x: (
        centered(t := x.reshape(2, 3)) / jnp.sqrt(t.var(1, keepdims=True) + EPS)
    ),
    "var + mean^2": lambda x: centered(x) / jnp.sqrt(jnp.mean(x**2) + jnp.mean(x) ** 2 + EPS),
    "2 mean^2": lambda x: centered(x) / jnp.sqrt(jnp.maximum(jnp.mean(x**2) - 2 * jnp.mean(x) ** 2, 0) + EPS),
    "norm of the doubled": lambda x: jnp.linalg.norm(jnp.concatenate([x, x])),
    "norm of squares": lambda x: jnp.sqrt(jnp.sum(x**4) + EPS),
    "sqrt(sum x^2 y^2)": of_halves(lambda a, b: jnp.sqrt(jnp.sum(a**2 * b**2) + EPS)),
    "sqrt(sum gains x^2)": lambda x: jnp.sqrt(jnp.sum(4 * GAINS * x**2) + EPS),
    "sqrt(|sum x^2 - 1| + eps)": lambda x: jnp.sqrt(jnp.abs(jnp.sum(x**2) - 1) + EPS),
    "sqrt(a.b)": of_halves(lambda a, b: jnp.sqrt(jnp.abs(a @ b) + EPS)),
    "projection on a ball, wrong radius": lambda x: x / jnp.maximum(0.2, jnp.linalg.norm(x)),
    "x/min(1, |x|+eps)": lambda x: x / jnp.minimum(1, jnp.linalg.norm(x) + EPS),
    # softmaxes of another
    "exp(x)/sum exp(2x)": lambda x: jnp.exp(x) / jnp.sum(jnp.exp(2 * x)),
    "exp(2x)/sum exp(x)": lambda x: jnp.exp(2 * x) / jnp.sum(jnp.exp(x)),
    "exp(x)/sum exp(flip)": lambda x: jnp.exp(x) / jnp.flip(jnp.cumsum(jnp.exp(x))),
    "exp(x-c)/sum exp(x)": lambda x: jnp.exp(x - 3 * SHIFT) / jnp.sum(jnp.exp(x)),
    "exp(x)/(1+sum exp(x))": lambda x: jnp.exp(x) / (1 + jnp.sum(jnp.exp(x))),
    "exp(x-max)/sum exp(x)": lambda x: jnp.exp(x - x.max()) / jnp.sum(jnp.exp(x)),
    "exp(x)/sum of the first": lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x[:3])),
    "softmax of rows over columns": lambda x: jnp.exp(t := x.reshape(2, 3)) / jnp.exp(t).sum(0),
    "3 softmax(2x)": lambda x: 3 * jax.nn.softmax(2 * x),
    "softmax of the doubled": lambda x: jax.nn.softmax(jnp.concatenate([x, x])),
    "logsumexp, weights of both signs": lambda x: jnp.log(jnp.abs(jnp.sum(SHIFT * jnp.exp(x))) + EPS),
    "log sum exp(2x)": lambda x: jnp.log(jnp.sum(jnp.exp(2 * x))),
    "log sum exp(x) twice": lambda x: jax.nn.logsumexp(jnp.concatenate([x, 2 * x])),
    "log(sum exp(x) - exp(x_0)/2)": lambda x: jnp.log(jnp.sum(jnp.exp(x)) - jnp.exp(x[0]) / 2),
    "log(sum x exp)": lambda x: jnp.log(jnp.sum(x**2 * jnp.exp(x)) + EPS),
    "max + log sum exp(2(x - max))": lambda x: x.max() + jnp.log(jnp.sum(jnp.exp(2 * (x - x.max())))),
    # derivatives that lie, integers, jumps
    "straight through": lambda x: x + lax.stop_gradient(jnp.round(x) - x),
    "stopped product": lambda x: x * lax.stop_gradient(x),
    "custom_jvp that says 0": flat_tangent,
    "floor": jnp.floor,
    "x-floor(x)": lambda x: x - jnp.floor(x),
    "x%1": lambda x: x % 1,
    "fmod": lambda x: jnp.fmod(x, 1.0),
    "x//1 scaled": lambda x: x + 1e-4 * (x // 1),
    "int cast": lambda x: x + 1e-3 * x.astype(int),
    "bits": lambda x: jnp.where(jnp.isnan(x), 0, jnp.ceil(x) + x),
    "sign": lambda x: x + 1e-3 * jnp.sign(x),
    "sign(x) x^0": lambda x: jnp.sign(x) * jnp.sqrt(jnp.abs(x) + 1e-8),
    "clamp by variables": of_halves(lambda a, b: lax.clamp(b, a, b + 1e-3)),
    "clamp, bounds crossing": of_halves(lambda a, b: jnp.clip(a, b, -b)),
    "interp with a jump": lambda x: jnp.interp(x, np.array([0, 1, 1, 2.0]), np.array([0, 1, 1.5, 2])),
    "cond on a value": lambda x: lax.cond(x[0] > 0, jnp.sin, lambda x: 2 * x, x),
    "cond without a jump": lambda x: lax.cond(x[0] > 0, lambda x: x * x[0], lambda x: -3 * x * x[0], x),
    "index by a value": lambda x: x[jnp.clip(jnp.abs(x[0]), 0, 5).astype(int)],
    "round to float16 steps": lambda x: jnp.round(x * 64) / 64,
    "while until small": lambda x: lax.while_loop(lambda c: jnp.abs(c).max() > 1, lambda c: c / 2, x),
    "steep near 0": lambda x: jnp.sqrt(x**2 + 1e-12) + jnp.tanh(1e4 * x) * 1e-2,
    "x^2 sin(1/x)": lambda x: x**2 * jnp.sin(1 / jnp.where(x == 0, 1, x)),
    "narrow bump": lambda x: 1e-3 * jnp.exp(-((1e4 * (x - 0.123456)) ** 2)),
    "sinc of 7x": lambda x: jnp.sinc(7 * x),
    "arctan2 of both": of_halves(lambda a, b: jnp.arctan2(a, b)),
    "arctan2(1, x)": lambda x: jnp.arctan2(1.0, x),
    "arctan2(x, -1)": lambda x: jnp.arctan2(x, -1.0),
    "power by a variable": of_halves(lambda a, b: (1 + jax.nn.sigmoid(a)) ** jnp.tanh(b)),
    "hidden square": lambda x: jnp.exp(2 * jnp.log(jnp.abs(x) + 1e-3)),
    "log1p(expm1)": lambda x: jnp.log1p(jnp.expm1(x)),
    "exp(log(x^2+1)/2)": lambda x: jnp.exp(jnp.log(x**2 + 1) / 2),
    "1/(1+exp(-x^2))": lambda x: 1 / (1 + jnp.exp(-(x**2))),
    "exp(x)/(1+exp(2x))": lambda x: jnp.exp(x) / (1 + jnp.exp(2 * x)),
    "exp(2x)/(1+exp(x))": lambda x: jnp.exp(2 * x) / (1 + jnp.exp(x)),
    "exp(x)/(exp(x)-0.5)": lambda x: jnp.exp(x) / (jnp.exp(x) - 0.5),
    "x exp(x)/(1+exp(x))^2": lambda x: x * jnp.exp(x) / (1 + jnp.exp(x)) ** 2,
}
#: The same functions where the derivative of the first form lies.
TWINS: dict[str, Callable[[Any], Any]] = {
    "straight through": jnp.round,
    "stopped product": lambda x: x * x,
    "custom_jvp that says 0": lambda x: 3 * x,
}
