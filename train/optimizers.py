"""The optimisers that a study can train with: optax's own, as values of a config."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from train.fields import among

if TYPE_CHECKING:
    import optax

SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How a network's parameters follow its gradients; one of `choices()`, by `--optimizer NAME`.

    The learning rate is not here: it is an axis of the study, traced, so that one compiled program serves all rates.
    What stands here is static. At step t of T, with w = `warmup_steps`, the rate is multiplied by

        (t + 1) / w                            while t < w,
        1                                      "constant",
        (1 + cos(pi (t - w) / (T - w))) / 2    "cosine",
        1 - (t - w) / (T - w)                  "linear".

    To add one, derive a dataclass with the `name` of optax's function and fields named like its arguments, and list it
    in `choices`.

    Attributes:
        schedule: "constant", "cosine" or "linear".
        warmup_steps: steps over which the rate rises to its value; 0 for none.
        clip_norm: largest norm of the whole gradient, before anything else; None for no clipping.
    """

    name: ClassVar[str]

    schedule: str = "constant"
    warmup_steps: int = 0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        among(SCHEDULES)("optimizer.schedule", self.schedule)
        for name, value in vars(self).items():
            is_right, rule, remedy = _RANGES.get(name, (lambda _: True, "", ""))
            if value is not None and not is_right(value):
                raise ValueError(f"`optimizer.{name}` must be {rule}, got {value}. {remedy}")
        if getattr(self, "nesterov", False) and getattr(self, "momentum", 1) == 0:
            raise ValueError(
                "`optimizer.nesterov` needs a momentum above 0, got 0. Use --optimizer.momentum 0.9."
            )

    def check_budget(self, num_steps: int) -> None:
        """Raises ValueError where the warm-up would not end within the study's `num_steps`."""
        if self.warmup_steps >= num_steps:
            raise ValueError(
                f"`optimizer.warmup_steps` must be less than num_steps = {num_steps}, got {self.warmup_steps}. "
                f"Use --optimizer.warmup-steps {num_steps // 10}, or more steps."
            )

    @staticmethod
    def choices() -> Mapping[str, type[Optimizer]]:
        """The optimisers by the names that the command line knows.

        >>> list(Optimizer.choices())
        ['sgd', 'adam', 'adamw', 'lion', 'muon']
        """
        return {kind.name: kind for kind in (Sgd, Adam, AdamW, Lion, Muon)}

    def bound(self, num_steps: int) -> Callable[[Mapping[str, Any]], optax.GradientTransformation]:
        """The optimiser of a run of `num_steps`, as `jaxact.fit` takes it: a function of the traced hyperparameters.

        Args:
            num_steps: T of the schedule.

        Returns:
            A function of a mapping that holds `learning_rate`, a scalar that may be traced.
        """
        import optax

        def transformation(hparams: Mapping[str, Any]) -> optax.GradientTransformation:
            moves = self.transformation(self._scheduled(hparams["learning_rate"], num_steps))
            if self.clip_norm is None:
                return moves
            return optax.chain(optax.clip_by_global_norm(self.clip_norm), moves)

        return transformation

    def transformation(self, learning_rate: Any) -> optax.GradientTransformation:
        """Optax's function of this name, with this one's own fields."""
        import optax

        return getattr(optax, self.name)(learning_rate, **self._own())

    def _own(self) -> dict[str, Any]:
        """The fields that optax's function takes: those that not all optimisers have."""
        common = {each.name for each in fields(Optimizer)}
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in common}

    def _scheduled(self, learning_rate: Any, num_steps: int) -> Any:
        import optax

        left = num_steps - self.warmup_steps
        rates = {
            "constant": lambda: (
                optax.constant_schedule(learning_rate) if self.warmup_steps else learning_rate
            ),
            "cosine": lambda: optax.cosine_decay_schedule(learning_rate, left),
            "linear": lambda: optax.linear_schedule(learning_rate, 0.0, left),
        }
        if not self.warmup_steps:
            return rates[self.schedule]()
        rising = lambda step: learning_rate * (step + 1) / self.warmup_steps  # noqa: E731
        return optax.join_schedules([rising, rates[self.schedule]()], [self.warmup_steps])


@dataclass(frozen=True, kw_only=True)
class Sgd(Optimizer):
    """Gradient descent with momentum (Polyak 1964), Nesterov's where asked for (`optax.sgd`).

    Attributes:
        momentum: m of the velocity v <- g + m v; 0 for none.
        nesterov: whether a step looks ahead, g + m v in place of v.
    """

    name = "sgd"

    momentum: float = 0.9
    nesterov: bool = False


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, Algorithm 1; `optax.adam`).

    Attributes:
        b1: decay of the first moment.
        b2: decay of the second moment.
        nesterov: whether a step looks ahead (Dozat 2016).
    """

    name = "adam"

    b1: float = 0.9
    b2: float = 0.999
    nesterov: bool = False


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019; `optax.adamw`), of all parameters alike.

    Attributes:
        weight_decay: what a step subtracts, times learning rate and parameter.
    """

    name = "adamw"

    weight_decay: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """The sign of an interpolated momentum (Chen et al. 2023, Algorithm 2; `optax.lion`).

    Attributes:
        b1: weight of the momentum in a step.
        b2: decay of the momentum.
        weight_decay: what a step subtracts, times learning rate and parameter.
    """

    name = "lion"

    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Orthogonalised momentum for the weights of hidden layers (Jordan 2024; `optax.contrib.muon`), Adam for the rest.

    The rest is what is no matrix between hidden layers: biases, norms, and the first and last layer of `jaxact.nn.MLP`
    and `ResNet` (of networks that do not name these two, every kernel counts as hidden). A stack's weights
    [layer, in, out] are orthogonalised layer by layer, a convolution's as the matrix [taps in, out].

    Attributes:
        momentum: decay of the momentum.
        nesterov: whether a step looks ahead.
        weight_decay: of what Muon moves: what a step subtracts, times learning rate and parameter.
    """

    name = "muon"

    momentum: float = 0.95
    nesterov: bool = True
    weight_decay: float = 0.0

    def transformation(self, learning_rate: Any) -> optax.GradientTransformation:
        """`optax.contrib.muon`, told which axes of which parameters make a matrix."""
        import optax.contrib

        own = self._own()
        beta = own.pop("momentum")
        return optax.contrib.muon(
            learning_rate, beta=beta, muon_weight_dimension_numbers=_hidden_matrices, **own
        )


def _hidden_matrices(params: Any) -> Any:
    """Which axes of each leaf are a matrix's in and out; None for what is no weight of a hidden layer."""
    import jax
    from optax.contrib import MuonDimensionNumbers

    def dimensions(path: tuple, leaf: Any) -> Any:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if "kernel" not in names or names[0] in ("embed", "head"):
            return None
        first = 1 if "stages" in names else 0  # a stack's leading axis counts layers
        return MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _is_decay(value: float) -> bool:
    return 0 <= value < 1


def _is_size(value: float) -> bool:
    return math.isfinite(value) and value >= 0


_RANGES: dict[str, tuple[Callable[[float], bool], str, str]] = {
    "momentum": (_is_decay, "in [0, 1)", "0.9 is usual, 0 is none."),
    **dict.fromkeys(("b1", "b2"), (_is_decay, "in [0, 1)", "0.9 and 0.999 are usual.")),
    "weight_decay": (_is_size, "finite and not negative", "Use 0 for none."),
    "warmup_steps": (_is_size, "0 or more", "Use 0 for no warm-up."),
    "clip_norm": (
        lambda value: _is_size(value) and value > 0,
        "positive and finite",
        "Use None for no clipping.",
    ),
}
