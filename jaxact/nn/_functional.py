"""A module as pure functions of its variables, the form that `jaxact.fit` and every jax transform take."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import nnx


class Functional(NamedTuple):
    """A module's `init` and `apply`; see `functional`.

    Attributes:
        init: `init(key, **kwargs) -> (params, variables)`; may be vmapped over keys and traced keyword arguments.
        apply: `apply(params, variables, *args, training=False, method="__call__", remat=False, **kwargs)`, pure, gives
            (output, variables). `training` says whether batch norms use and update statistics of the batch; `method`
            names the method to call, or is a function of the module such as `calibrate`; `remat=True` sets the
            attribute of this name wherever a module has it, as `Stack` does: gradients for less memory and more time.
    """

    init: Callable[..., tuple[Any, Any]]
    apply: Callable[..., tuple[Any, Any]]


def functional(build: Callable[..., nnx.Module]) -> Functional:
    """Split a module into pure functions.

    Args:
        build: makes the module from `(rngs=...)` and, if wanted, keyword arguments that all have defaults; its
            structure must not depend on the key or on their values.

    Returns:
        `init` and `apply`, a `Functional`. params holds the `nnx.Param`s, variables everything else.

    >>> import jax.numpy as jnp
    >>> from functools import partial
    >>> init, apply = functional(partial(nnx.Linear, 3, 2))
    >>> params, variables = init(jax.random.key(0))
    >>> output, variables = apply(params, variables, jnp.ones((5, 3)))
    >>> output.shape
    (5, 2)
    """
    graphdef = nnx.split(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(params=0))))[0]

    def init(key: jax.Array, **kwargs: Any) -> tuple[Any, Any]:
        parts: Any = nnx.split(build(rngs=nnx.Rngs(params=key), **kwargs), nnx.Param, ...)
        return parts[1], parts[2]

    def apply(params, variables, *args, training=False, method="__call__", remat=False, **kwargs):
        module = nnx.merge(graphdef, params, variables, copy=True)
        for _, part in nnx.iter_modules(module) if remat else ():
            if hasattr(part, "remat"):
                part.remat = True
        module.train() if training else module.eval()
        call = getattr(module, method) if isinstance(method, str) else partial(method, module)
        output = call(*args, **kwargs)
        parts: Any = nnx.split(module, nnx.Param, ...)
        return output, parts[2]

    return Functional(init, apply)
