"""Time mean-field theory, with dks beside it where dks can do the task at all.

    pip install --no-deps dks autograd      # DeepMind's Deep Kernel Shaping; optional
    python scripts/bench_theory.py          # about 3 minutes on two cores, most of it dks

One line a task: the time of a call once compiled, that of the first call, and dks's time. dks works in numpy, knows
activations by name, at variance 1 and on one point at a time; "cannot" says that it has nothing for the task. All in
float64; the best of several calls counts.
"""

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np

from jaxact import activations, theory

jax.config.update("jax_enable_x64", True)


def main() -> None:
    """Measure and print one line a task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--activation", default="tanh")
    parser.add_argument("--depth", type=int, default=64, help="layers, for the spectrum and the shaping")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    activation = activations.parse(options.activation)
    peer = _peer(options.activation)
    critical = theory.critical_point(activation, q_star=0.5)
    scales = {"sigma_w": float(critical.sigma_w), "sigma_b": float(critical.sigma_b)}
    grid = np.meshgrid(np.linspace(1.0, 2.0, 100), np.linspace(0.0, 0.5, 100))
    moments = jax.jit(lambda variance: theory.moments(activation, 0.0, variance))
    slope = jax.jit(jax.value_and_grad(lambda c: theory.correlation_map(activation, c, **scales)))
    diagram = jax.jit(lambda w, b: theory.mean_field(activation, sigma_w=w, sigma_b=b))

    def spectrum(weights: str) -> Callable[[], object]:
        return lambda: theory.jacobian_spectrum(activation, options.depth, weights=weights, **scales)

    tasks: list[tuple[str, Callable[[], object], Callable[[], object] | None]] = [
        ("moments", lambda: moments(1.0), peer and peer.moments),
        ("correlation map and slope at 0.5", lambda: slope(0.5), peer and peer.correlation),
        ("phase diagram, 100 x 100", lambda: diagram(*grid), None),
        (f"spectrum, depth {options.depth}, gaussian", spectrum("gaussian"), None),
        (f"spectrum, depth {options.depth}, orthogonal", spectrum("orthogonal"), None),
        (
            f"shaping (DKS), depth {options.depth}",
            lambda: theory.shape(activation, options.depth),
            peer and peer.shape(options.depth),
        ),
    ]
    print(f"{'task':42} {'compiled':>12} {'first call':>12} {'dks':>12} {'ratio':>8}")
    for name, ours, theirs in tasks:
        first = _seconds(ours)
        best = min(_seconds(ours) for _ in range(options.repeats))
        other = None if theirs is None else _seconds(theirs)
        beside = f"{'cannot' if peer else 'not installed':>12}" if other is None else f"{_text(other):>12}"
        ratio = "" if other is None else f"{other / best:8.1f}"
        print(f"{name:42} {_text(best):>12} {_text(first):>12} {beside} {ratio}", flush=True)


class _Dks:
    """dks's own functions for one activation."""

    def __init__(self, name: str):
        from dks.base import activation_getter, activation_transform

        self.name, self.transform = name, activation_transform
        self.function = activation_getter.get_activation_function(name)

    def moments(self) -> object:
        """E f(z)^2 and E f'(z)^2, of our eight."""
        return self.transform._calc_c_map(self.function, q_output=1.0), self.transform._calc_c_slope(
            self.function, q_output=1.0
        )

    def correlation(self) -> object:
        """C(0.5) and C'(0.5)."""
        return self.transform._calc_c_map(self.function, c=0.5), self.transform._calc_c_slope(
            self.function, c=0.5
        )

    def shape(self, depth: int) -> Callable[[], object]:
        """The transformation for a chain of so many layers."""
        return lambda: self.transform.get_transformed_activations(
            [self.name], method="DKS", max_slope_func=lambda slope: slope**depth
        )


def _peer(name: str) -> _Dks | None:
    try:
        return _Dks(name)
    except (ImportError, ValueError, NotImplementedError):
        return None


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def _text(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


if __name__ == "__main__":
    main()
