"""The arrays that users hand over, and whether they are one input of a function or a batch of them."""

import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxact.numerics._functions import FunctionError, check_inference, traced


def native(value: Any) -> Any:
    """An array in the machine's byte order, which is all that JAX takes; anything else as it is.

    Args:
        value: anything.

    Example:
        >>> native(np.ones(2, ">f4")).dtype
        dtype('float32')
    """
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.isnative:
        return value.astype(value.dtype.newbyteorder("="))
    return value


def real_floating(name: str, value: Any, taken: str = "an array") -> Float[Array, "*shape"]:
    """An argument as an array of JAX.

    Args:
        name: of the argument.
        value: an array in any byte order, a number or nested lists of one shape; may be traced.
        taken: what the argument is, for the message.

    Raises:
        TypeError: it is no array, or not of real floating-point numbers.

    Example:
        >>> real_floating("x", [1.0, 2.0]).shape
        (2,)
    """
    try:
        array = jnp.asarray(native(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"`{name}` must be real floating-point, {taken} or nested lists of one shape, got "
            f"{reprlib.repr(value)}. Make one array of it; a pytree with jax.flatten_util.ravel_pytree."
        ) from error
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"`{name}` must be real floating-point, got dtype {array.dtype}. "
            "Convert it first, for instance with .astype(jnp.float32)."
        )
    return array


class Inputs(NamedTuple):
    """Inputs of a function `fn` of ONE input: a batch of them along the first axis, or one.

    An array of at most one axis is read as one input, an array of more axes as a batch along the first. Only where
    `fn`, traced and not run, does not take the inputs of that reading, and takes those of the other, the other holds:
    an image [28, 28, 1] for an fn that flattens it to 784 numbers is one input, an array [8] for an fn of one number a
    batch of 8. Where fn takes both, such as an elementwise one or a convolution of any size, x[None] says one image
    and x[:, None] a batch of numbers. What is returned for a batch has its axis first, for one input no such axis.
    Arguments of the names `example` and `center` are one input always.

    Attributes:
        batch: [batch, *input]; of length 1 for one input.
        is_single: whether that axis was not there.
        output: shape and dtype of fn at one input.
    """

    batch: Float[Array, " batch *input"]
    is_single: bool
    output: jax.ShapeDtypeStruct

    def unbatched(self, result: Any) -> Any:
        """A result [batch, ...], in any pytree, without its first axis for one input."""
        return jax.tree.map(lambda leaf: leaf[0], result) if self.is_single else result


def read_inputs(fn: Callable[[Array], Array], x: Any, *, name: str = "x") -> Inputs:
    """Tell one input of `fn` from a batch of them, by the rule of `Inputs`.

    Args:
        fn: maps ONE input to one real floating-point array; traced, once where the first reading holds.
        x: real floating-point, in any byte order; may be traced.
        name: of `x`, for messages.

    Returns:
        `Inputs`: the batch, and whether it was one.

    Raises:
        FunctionError: JAX cannot trace `fn`, it changes a model's state, normalises by the statistics of its batch, or
            does not return one real floating-point array.
        TypeError: `x` is not real floating-point.
        ValueError: `x` is empty.

    Example:
        >>> image = jnp.ones((4, 4, 1))
        >>> [read_inputs(fn, image).batch.shape for fn in (jnp.tanh, lambda x: jnp.ones(16) @ x.reshape(16))]
        [(4, 4, 1), (1, 4, 4, 1)]
    """
    x = real_floating(name, x, "one input or a batch [batch, *input], as an array")
    if x.size == 0:
        raise ValueError(
            f"`{name}` must be [batch, *input] or one input, and not empty, got shape {x.shape}. "
            "Pass at least one input."
        )
    first = x.ndim <= 1
    refusals: list[Exception] = []
    for is_single in (first, not first) if x.ndim else (True,):
        try:
            closed, output = traced(fn, jax.ShapeDtypeStruct(x.shape if is_single else x.shape[1:], x.dtype))
            break
        except FunctionError:
            raise
        except Exception as error:
            refusals.append(error)
    else:
        raise refusals[0]
    check_inference(closed)
    return Inputs(x[None] if is_single else x, is_single, _one_array(output))


def read_one(fn: Callable[[Array], Array], x: Any, *, name: str) -> tuple[Float[Array, "*input"], Any]:
    """One input of `fn`, whatever its shape, and the shape and dtype of fn there.

    Args:
        fn: maps one input to one real floating-point array.
        x: the input, real floating-point, in any byte order.
        name: of `x`, for messages.

    Raises:
        FunctionError: as `read_inputs`.
        TypeError: `x` is not real floating-point.
        ValueError: `x` is empty.

    Example:
        >>> read_one(jnp.sum, jnp.ones((8, 8)), name="center")[1].shape
        ()
    """
    x = real_floating(name, x, "one input, as an array")
    if x.size == 0:
        raise ValueError(f"`{name}` must not be empty, got shape {x.shape}. Pass one input of `fn`.")
    closed, output = traced(fn, jax.ShapeDtypeStruct(x.shape, x.dtype))
    check_inference(closed)
    return x, _one_array(output)


def _one_array(output: Any) -> jax.ShapeDtypeStruct:
    if not isinstance(output, jax.ShapeDtypeStruct):
        raise FunctionError(
            "`fn`",
            f"must return one array, got {jax.tree.structure(output)}. "
            "Select the output to differentiate, for instance lambda x: model(x)[0].",
        )
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise FunctionError(
            "`fn`",
            f"must return a real floating-point array, got dtype {output.dtype}. "
            "Differentiate the scores, before any rounding or comparison.",
        )
    return output
