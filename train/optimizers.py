"""The optimisers that a study can train with: optax's own, as values of a config."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

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
        if self.schedule not in SCHEDULES:
            close = difflib.get_close_matches(self.schedule, SCHEDULES, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"`optimizer.schedule` must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}.{hint}"
            )
        if self.warmup_steps < 0:
            raise ValueError(
                f"`optimizer.warmup_steps` must be 0 or more, got {self.warmup_steps}. Use 0 for no warm-up."
            )
        if self.clip_norm is not None:
            _check_range(
                "clip_norm", self.clip_norm, low=0, is_open=True, remedy="Leave it out for no clipping."
            )
        self.check()

    def check(self) -> None:
        """Raises ValueError naming field, value and rule where a field of the subclass is out of range."""

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
            return (
                moves
                if self.clip_norm is None
                else optax.chain(optax.clip_by_global_norm(self.clip_norm), moves)
            )

        return transformation

    def transformation(self, learning_rate: Any) -> optax.GradientTransformation:
        """Optax's own, at a learning rate that is a scalar or a schedule."""
        raise NotImplementedError(f"{type(self).__name__} must define `transformation(learning_rate)`.")

    def _scheduled(self, learning_rate: Any, num_steps: int) -> Any:
        import optax

        left = num_steps - self.warmup_steps
        after = {
            "constant": lambda: (
                optax.constant_schedule(learning_rate) if self.warmup_steps else learning_rate
            ),
            "cosine": lambda: optax.cosine_decay_schedule(learning_rate, left),
            "linear": lambda: optax.linear_schedule(learning_rate, 0.0, left),
        }[self.schedule]()
        if not self.warmup_steps:
            return after
        return optax.join_schedules(
            [lambda step: learning_rate * (step + 1) / self.warmup_steps, after], [self.warmup_steps]
        )

    def __str__(self) -> str:
        """In words: the name, and every field that differs from what Optax's user would assume.

        >>> print(AdamW(weight_decay=0.1, schedule="cosine"))
        adamw (weight decay 0.1, cosine schedule)
        """
        said = [
            f"{each.name.replace('_', ' ')} {getattr(self, each.name):g}"
            for each in fields(self)
            if each.name not in ("schedule", "nesterov") and getattr(self, each.name)
        ]
        said += ["Nesterov"] if getattr(self, "nesterov", False) else []
        said += [f"{self.schedule} schedule"] if self.schedule != "constant" else []
        return f"{self.name} ({', '.join(said)})" if said else self.name


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

    def check(self) -> None:
        """`momentum` in [0, 1); Nesterov's needs some."""
        _check_range("momentum", self.momentum, low=0, high=1)
        if self.nesterov and not self.momentum:
            raise ValueError(
                "`optimizer.nesterov` needs a momentum above 0, got 0. Use --optimizer.momentum 0.9."
            )

    def transformation(self, learning_rate: Any) -> optax.GradientTransformation:
        """`optax.sgd`."""
        import optax

        return optax.sgd(learning_rate, momentum=self.momentum or None, nesterov=self.nesterov)


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

    def check(self) -> None:
        """`b1` and `b2` in [0, 1)."""
        _check_range("b1", self.b1, low=0, high=1)
        _check_range("b2", self.b2, low=0, high=1)

    def transformation(self, learning_rate: Any) -> optax.GradientTransformation:
        """`optax.adam`."""
        import optax

        return optax.adam(learning_rate, b1=self.b1, b2=self.b2, nesterov=self.nesterov)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019; `optax.adamw`), of all parameters alike.

    Attributes:
        weight_decay: what a step subtracts, times learning rate and parameter.
    """

    name = "adamw"

    weight_decay: float = 1e-4

    def check(self) -> None:
        """As Adam's, and `weight_decay` >= 0."""
        super().check()
        _check_range("weight_decay", self.weight_decay, low=0)

    def transformation(self, learning_rate: Any) -> optax.GradientTransformation:
        """`optax.adamw`."""
        import optax

        decay = self.weight_decay
        return optax.adamw(learning_rate, b1=self.b1, b2=self.b2, weight_decay=decay, nesterov=self.nesterov)


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

    def check(self) -> None:
        """`b1` and `b2` in [0, 1), `weight_decay` >= 0."""
        _check_range("b1", self.b1, low=0, high=1)
        _check_range("b2", self.b2, low=0, high=1)
        _check_range("weight_decay", self.weight_decay, low=0)

    def transformation(self, learning_rate: Any) -> optax.GradientTransformation:
        """`optax.lion`."""
        import optax

        return optax.lion(learning_rate, b1=self.b1, b2=self.b2, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Orthogonalised momentum for the weights of hidden layers (Jordan 2024; `optax.contrib.muon`), Adam for the rest.

    The rest is what is no matrix between hidden layers: biases, norms, the first and the last layer. A stack's weights
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

    def check(self) -> None:
        """`momentum` in [0, 1), `weight_decay` >= 0."""
        _check_range("momentum", self.momentum, low=0, high=1)
        _check_range("weight_decay", self.weight_decay, low=0)

    def transformation(self, learning_rate: Any) -> optax.GradientTransformation:
        """`optax.contrib.muon`."""
        import optax.contrib

        return optax.contrib.muon(
            learning_rate,
            beta=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            muon_weight_dimension_numbers=_hidden_matrices,
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
        return MuonDimensionNumbers(
            reduction_axis=tuple(range(first, leaf.ndim - 1)), output_axis=leaf.ndim - 1
        )

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _check_range(
    name: str, value: float, *, low: float, high: float = math.inf, is_open: bool = False, remedy: str = ""
) -> None:
    if not (math.isfinite(value) and value >= low and value < high) or (is_open and value == low):
        rule = "positive and finite" if is_open else "finite and not negative"
        rule = f"in [{low:g}, {high:g})" if math.isfinite(high) else rule
        raise ValueError(f"`optimizer.{name}` must be {rule}, got {value}. {remedy}".rstrip())
