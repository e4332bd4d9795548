"""Programs of all members of a trial: compiled once, with as many members side by side as memory holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from jaxact import fit
from train import memory

AtOnce = int | Literal["auto"]
_TRACED_ONCE = "cells must differ in the values of arguments alone, not in shapes, dtypes or static fields."


class Program:
    """A function of one member, and of what all share, as a compiled program of all members.

    It is compiled at its first call, for all members of a device side by side. Under "auto" the compiled program is
    then asked what it would take, beside its arguments, and where a device has less, one of as many members as
    fit takes its place. A second trace of the same, which would be a compile a cell, is an error.

    Args:
        one: `one(member or state, *shared)`.
        mesh: that members are spread over, or None.
        at_once: how many members of a device may be side by side; "auto" for as many as fit.
        precision: of matrix products, as `jax.default_matmul_precision` takes it.
        options: of `jax.jit`.
        spend: told the seconds that each first call took: tracing, compiling and one run.

    Attributes:
        jitted: the function of all members under `jax.jit`; None before the first call.
        size: how many members a device has.
        at_once: how many of them it holds side by side.
    """

    def __init__(
        self,
        one: Callable,
        mesh: Any,
        at_once: AtOnce,
        *,
        precision: str | None = None,
        options: Mapping[str, Any] | None = None,
        spend: Callable[[float], None] = lambda _: None,
    ):
        self._one, self._mesh, self._asked = one, mesh, at_once
        self._precision, self._options, self._spend = precision, dict(options or {}), spend
        self.jitted: Any = None
        self.size = self.at_once = 0
        self._may_trace = True

    def __call__(self, *args: Any) -> Any:
        """The results of all members, waited for."""
        started = time.perf_counter()
        is_first = not self._is_ready()
        if is_first:
            self.compiled(*args)
        memory.budget().take(self.at_once, self.size)
        result = jax.block_until_ready(self._run(args))
        self._may_trace = False
        if is_first:
            self._spend(time.perf_counter() - started)
        return result

    @property
    def side_by_side(self) -> str:
        """How many members of a device are side by side: "all", or such as "4 of 9"."""
        return "all" if self.at_once == self.size else f"{self.at_once} of {self.size}"

    def compiled(self, *args: Any) -> Any:
        """Compile it for these arguments, with as many members side by side as fit; what jax makes of it."""
        num_devices = 1 if self._mesh is None else self._mesh.size
        size = self.size = -(-len(jax.tree.leaves(args[0])[0]) // num_devices)
        known = (size, self._asked, memory.budget().at_most)
        first = _even(size, min(each for each in known if isinstance(each, int)))
        compiled = self._compile(first, args)
        if self._asked != "auto":
            return compiled
        free, whole = memory.free(self._mesh), memory.needed(compiled)
        needed = whole
        while needed > free and self.at_once > 1:
            compiled = self._compile(_fewer(compiled, self.at_once, size, free), args)
            needed = memory.needed(compiled)
        if whole > free:
            self._tell(first, whole, free, needed)
        return compiled

    def _compile(self, at_once: int, args: tuple) -> Any:
        self.at_once, self._may_trace = at_once, True
        memory.budget().take(at_once, self.size)

        def every(*args: Any) -> Any:
            if not self._may_trace:
                raise AssertionError(f"{every.__name__} is traced a second time: {_TRACED_ONCE}")
            with jax.default_matmul_precision(self._precision):
                return fit.population(self._one, *args, mesh=self._mesh, at_once=at_once)

        every.__name__ = self.name
        self.jitted = jax.jit(every, **self._options)
        # The call that follows finds this executable, and compiles nothing (jax 0.10.2).
        return self.jitted.lower(*args).compile()

    @property
    def name(self) -> str:
        """Of the function of one member."""
        return getattr(self._one, "__name__", "program").strip("_")

    def _run(self, args: tuple) -> Any:
        return self.jitted(*args)

    def _is_ready(self) -> bool:
        """Whether it is compiled, and `jax.clear_caches` was not called since, nor memory found too small for it."""
        limit = memory.budget().at_most
        is_within = limit is None or self.at_once <= limit
        return self.jitted is not None and self.jitted._cache_size() > 0 and is_within

    def _tell(self, members: int, whole: float, free: float, now: float) -> None:
        needs = f"{members} members side by side need {memory.shown(whole)} ({self.name})"
        found = f"{needs}, and {memory.shown(free)} are free: {self.at_once} at once, in {memory.shown(now)}"
        still = " (one alone is too large, and tried)" if now > free else ""
        memory.budget().say(f"{found}{still}.")


def _fewer(compiled: Any, at_once: int, size: int, free: float) -> int:
    """How many members of a device would fit, if what lies between arguments and results were in proportion."""
    between = max(compiled.memory_analysis().temp_size_in_bytes, 1)
    fixed = memory.needed(compiled) - between
    return _even(size, min(max(int(at_once * (free - fixed) / between), 1), at_once - 1))


def _even(size: int, most: int) -> int:
    """How many are side by side where stretches of at most so many are as even as can be."""
    num_stretches = -(-size // most)
    return -(-size // num_stretches)
