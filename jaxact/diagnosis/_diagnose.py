"""What ails a model: every product measured by one compiled program, and predicted beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from jaxact.diagnosis._arguments import Traced, of_one, traced
from jaxact.diagnosis._diagnosis import Diagnosis
from jaxact.diagnosis._ends import MANY, Ends, jacobian_ends, no_ends
from jaxact.diagnosis._evidence import Evidence, flattened
from jaxact.diagnosis._findings import findings
from jaxact.diagnosis._measure import NAMES, Watch, call_loss
from jaxact.diagnosis._norms import batch_note, fresh_note
from jaxact.diagnosis._predict import Prediction, predict
from jaxact.diagnosis._reading import Reading, Site
from jaxact.diagnosis._remedies import initialize_line
from jaxact.diagnosis._rows import Row
from jaxact.diagnosis._sharpness import Sharpness, sharpness
from jaxact.diagnosis._skeleton import INPUT
from jaxact.errors import ArgumentError, one_line

_NO_LOSS = "a fixed random projection of the outputs, summed over the inputs (no loss was given)"


def watch(fn: Any, params: Any, batch: Any = None, *, loss: Callable[..., Any] | None = None) -> Watch:
    """Make the measuring part of `diagnose`, to be used within a training loop.

    It lives here rather than in `jaxact.probes`, which measures what its caller hands over, for it reads the model's
    jaxpr. A call costs 0.6 to 1.9 training steps (dense and convolutional networks of ten layers): every
    hundredth step, some one percent. `scripts/watch_tensorboard.py` and `scripts/watch_wandb.py` are whole programs.

    Args:
        fn: as in `diagnose`.
        params: as in `diagnose`; only structure, shapes and dtypes matter.
        batch: as in `diagnose`; the same.
        loss: as in `diagnose`.

    Returns:
        A pure function (params, batch) -> {name: [row]}, to be jitted or called within a jitted step.

    Raises:
        ValueError: as in `diagnose`.
        TypeError: as in `diagnose`.

    Example:
        >>> import jax.numpy as jnp
        >>> numbers = watch(lambda w, x: x @ w, jnp.eye(3), jnp.ones((2, 3)))
        >>> float(numbers(2 * jnp.eye(3), jnp.ones((2, 3)))["second_moment"][0])
        4.0
    """
    model = traced(fn, params, batch, loss)
    run = _watch(model)
    with _with_gradient():
        jax.eval_shape(run.all, model.params, model.batch)
    return run


def _watch(model: Traced) -> Watch:
    num_leaves = len(jax.tree.leaves(model.batch))
    return Watch(model.closed, model.reading, model.loss, model.out_tree, num_leaves)


@contextmanager
def _with_gradient() -> Iterator[None]:
    """Refuse what has none as it is traced."""
    try:
        yield
    except ValueError as error:  # a `while` loop, for one
        raise ArgumentError(
            f"must have a gradient; it raised {one_line(error)}.",
            "Write a loop of a known number of turns as jax.lax.scan or fori_loop with static ends.",
            argument="fn",
        ) from error


def diagnose(
    fn: Any,
    params: Any,
    batch: Any = None,
    *,
    loss: Callable[..., Any] | None = None,
    jacobian: bool | None = None,
    learning_rate: float | None = None,
) -> Diagnosis:
    """Measure a model at every product, and say what theory expects there.

    The function is traced, and its jaxpr evaluated again with a tap at every product with a parameter in it, and of two
    arrays that depend on the input: inside jit, custom derivatives, remat, scan (each turn is a row of its own) and
    cond. One compiled program measures all. The prediction walks the same jaxpr with statistics in place of arrays,
    from the inputs as they are, and takes each weight array as random with the mean and mean square that it has: exact
    at infinite width at initialisation, an approximation elsewhere.

    The notes name batch norms that hold the statistics that they were made with, and what sets these; findings of scale
    there are left out. They name a function that takes statistics from its batch, as in training mode, too.

    Measured only, with the reason in the row: weights used before the other way round (a decoder tied to its
    embedding), `while` loops, gates (products and sums of arrays that share weights, as in a GRU), what has no rule.
    Approximate: gradients count as independent of the weights they pass, and those at the outputs as independent at
    different positions. What positions have in common is the same for all pairs, but where inputs, masks and borders of
    convolutions make it uneven: behind a causal mask second moments of averages are some 10 % off, and gradients 20 %
    where tokens are then averaged. Max pooling takes what neighbours have in common for what all of a window have.
    Norms over features do not see means that differ between positions, as a mixer makes them, whose head is predicted
    too large. And a number of few outputs, as of a head of ten, is one draw. `scripts/diagnose_predictions.py` measures
    how far predictions are off.

    Args:
        fn: function of (params, inputs). Or a module with `params` left out, `diagnose(module, batch)`: an NNX module
            in eval mode, a pair (Linen module, variables), (hk.Transformed, params) or (hk.TransformedWithState,
            (params, state)), or an Equinox module, which is mapped over the batch.
        params: pytree of arrays; the rows are named by its paths.
        batch: inputs: an array, or a pytree of arrays, with the inputs on the first axis.
        loss: of the outputs, or of (outputs, batch), to a scalar. By default the sum of all outputs times fixed
            standard normal numbers.
        jacobian: whether to find the ends of its singular values, for the first input: a further program to compile.
            By default where at most 16 products are written out (a loop's body counts once).
        learning_rate: of gradient descent, to be held against the sharpness of the loss, 2 over the largest eigenvalue
            of its Hessian: twelve products with it, some forty gradient steps.

    Returns:
        A `Diagnosis`: print it, or see `findings`, the gravest first, `rows`, `to_frame()`, `chart()`.

    Raises:
        ValueError: params or batch hold NaN or inf, the model does not take the batch, is in training mode, or has no
            product; the learning rate is not positive, or without a loss.
        TypeError: `fn` is no such function, or the loss no scalar.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> w = jax.random.normal(jax.random.key(0), (3, 64, 64)) / 8
        >>> def model(w, x):
        ...     return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0]
        >>> found = diagnose(model, w, jnp.ones((4, 64)))
        >>> [row.name for row in found.rows]
        ['params[0]', 'params[1]', 'params[2]']
    """
    _check_rate(learning_rate, loss)
    model = traced(fn, params, batch, loss)
    run = _watch(model)
    with _with_gradient():
        measured, at_outputs, value = jax.device_get(jax.jit(run.all)(model.params, model.batch))
    prediction = predict(model.reading, measured, at_outputs)
    ends = _ends(model, jacobian)
    rows = tuple(_row(model.reading, k, measured, prediction, ends) for k in range(len(model.reading.sites)))
    told = _NO_LOSS if loss is None else f"`{getattr(loss, '__name__', type(loss).__name__)}`"
    fresh = model.reading.norms.sites
    evidence = Evidence(
        rows=rows,
        skeleton=run.skeleton,
        fields=tuple(site.field for site in model.reading.sites),
        inputs=flattened(model.batch),
        loss=float(value),
        names=model.names,
        dtypes=tuple(leaf.dtype.name for leaf in jax.tree.leaves(model.params)),
        formulas=tuple(site.activation and site.activation[1] for site in model.reading.sites),
        initialize=initialize_line(model.kind),
        fresh={k: variance for k, variance in fresh.items() if k != INPUT},
        learning_rate=learning_rate,
        sharpness=_sharpness(model) if learning_rate is not None else None,
    )
    names = [row.name for row in rows]
    notes = [
        *fresh_note(fresh, names, model.kind, model.names, then="Findings of scale there are left out."),
        *batch_note(run.skeleton.batch_normed, names),
    ]
    return Diagnosis(rows, told, (*run.notes, *notes), findings(evidence))


def _check_rate(learning_rate: float | None, loss: Any) -> None:
    if learning_rate is not None and (loss is None or not learning_rate > 0):
        raise ArgumentError(
            f"must be positive and come with a loss, got {learning_rate} and loss={loss!r}.",
            "Give the training loss: diagnose(fn, params, batch, loss=..., learning_rate=0.1).",
            argument="learning_rate",
            give="learning_rate",
        )


def _sharpness(model: Traced) -> Sharpness:
    loss = model.loss
    assert loss is not None
    return sharpness(
        lambda params: call_loss(loss, model.call(params, model.batch), model.batch), model.params
    )


def _ends(model: Traced, jacobian: bool | None) -> Ends:
    is_wanted = len({site.key[0] for site in model.reading.sites}) <= MANY if jacobian is None else jacobian
    one = of_one(model) if is_wanted else None
    if one is None:
        return no_ends(len(model.reading.sites))
    closed, reading, example = one
    return jacobian_ends(closed, reading, model.params, example, model.reading.graph.batch.num_inputs)


def _row(reading: Reading, k: int, measured: Mapping[str, Any], prediction: Prediction, ends: Ends) -> Row:
    site: Site = reading.sites[k]
    gradient = np.sqrt(np.asarray(measured["gradient_second_moment"], float))
    expected = np.sqrt(np.asarray(prediction.gradient_second_moment, float))
    own = [name for name in NAMES if name != "gradient_second_moment"]
    return Row(
        name=site.name,
        line=site.place.short,
        kind=site.kind,
        shape=site.shape,
        fan_in=site.fan_in,
        weight_scale=site.weight_scale,
        dtype=site.dtype,
        **{name: float(measured[name][k]) for name in own},
        gradient=float(gradient[k]),
        gradient_factor=_factor(gradient, gradient, k),
        largest=float(ends.largest[k]),
        smallest=float(ends.smallest[k]),
        is_exact=ends.is_exact,
        predicted_mean=float(prediction.mean[k]),
        predicted_second_moment=float(prediction.second_moment[k]),
        predicted_cosine=float(prediction.cosine[k]),
        predicted_gradient=float(expected[k]),
        predicted_gradient_factor=_factor(expected, np.where(prediction.anchored, gradient, expected), k),
        reason=site.reason,
    )


def _factor(gradients: np.ndarray, after: np.ndarray, k: int) -> float:
    """The gradient at a row over that at the next, which may have been measured where that at the row is not."""
    if k + 1 >= len(after) or not 0 < after[k + 1] < np.inf:
        return float("nan")
    return float(gradients[k] / after[k + 1])
