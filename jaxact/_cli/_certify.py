"""The certify command: from its options to the ladder of a user's own model, and from there to JSON."""

import argparse
import contextlib
import math
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxact import adapters, lipschitz
from jaxact._cli._certify_tables import print_ladder
from jaxact._cli._output import InputError, errors_in_options, in_options, plain, print_json, progress
from jaxact._cli._verdict import verdict
from jaxact.adapters import OneExample, shape_text
from jaxact.errors import one_line
from jaxact.lipschitz import Ball, Box, Ladder, Rung

_KEPT = 4096  # entries of a witness in JSON
_EVERYWHERE = "Give a region (region=): --radius R --center FILE.npy, or --box LO HI, to bound it there."
_SMALLER = "Give a smaller region (region=): --radius, another --center, or --box."


def run(options: argparse.Namespace) -> int:
    """Print the ladder of Lipschitz numbers of `options.model`."""
    _check_region(options)
    # What a user's module prints must not get between the lines of JSON.
    with contextlib.redirect_stdout(sys.stderr):
        with errors_in_options():
            model = adapters.import_model(options.model)
        region, inputs = _region(options), _inputs(options)
        with errors_in_options():
            fn = adapters.on_one_example(model, options.input_shape, batch=options.batch)
        found = ladder(fn, region, inputs, options)
    shown = facts(fn, found)
    if options.json:
        print_json(shown)
    else:
        print_ladder(shown)
    return 0


def ladder(
    fn: OneExample, region: Ball | Box | None, inputs: np.ndarray | None, options: argparse.Namespace
) -> Ladder:
    """The ladder of a model.

    Raises:
        InputError: the model cannot be certified, neither over all inputs nor within the region.
    """
    try:
        with progress() as say:
            return lipschitz.ladder(
                fn.call,
                jnp.zeros(fn.shape, jnp.float32),
                region=region,
                inputs=inputs,
                tangent=fn.tangent,
                num_steps=options.steps,
                seconds=options.seconds,
                memory_limit=options.memory_limit,
                lower_steps=options.lower_steps,
                seed=options.seed,
                progress=say,
            )
    except (TypeError, ValueError) as error:
        raise InputError(_refusal(error, fn, _EVERYWHERE if region is None else _SMALLER)) from error


def _refusal(error: Exception, fn: OneExample, remedy: str) -> str:
    """Why a model has no certificate, with the region that it needs as `remedy` says."""
    name = fn.model.name
    words = in_options(error, {"fn": name}, {"region": remedy})
    return words if getattr(error, "argument", None) == "fn" else f"{name} cannot be certified: {words}"


# --- The region and the inputs ------------------------------------------------------------------------------


def _check_region(options: argparse.Namespace) -> None:
    if options.box is not None and options.radius is not None:
        raise InputError(
            "a region is either a ball, `--radius R`, or a box, `--box LO HI`, got both. Drop one."
        )
    if options.center != "zeros" and options.radius is None:
        raise InputError(
            "`--center` is that of a ball and needs `--radius R`, got none. Give --radius 0.1, say."
        )


def _region(options: argparse.Namespace) -> Ball | Box | None:
    shape = options.input_shape
    if options.radius is not None:
        center = np.zeros(shape)
        if options.center != "zeros":
            center = _example(Path(options.center), shape)
        return Ball(center, options.radius)
    if options.box is None:
        return None
    low, high = options.box
    if not low < high:
        raise InputError(f"`--box` must be LO < HI, got {low:g} {high:g}. Give the smaller one first.")
    return Box(np.full(shape, low), np.full(shape, high))


def _example(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    array = _loaded(path, "--center")
    if array.size == math.prod(shape):
        array = array.reshape(shape)  # [1, 784] for [784]
    if array.shape != shape:
        raise _wrong_shape("--center", shape_text(shape), array, path)
    return array


def _inputs(options: argparse.Namespace) -> np.ndarray | None:
    if options.inputs is None:
        return None
    shape, array = options.input_shape, _loaded(options.inputs, "--inputs")
    if array.shape == shape:
        array = array[None]
    if array.shape[1:] != shape or array.size == 0:
        raise _wrong_shape("--inputs", shape_text(("n", *shape)), array, options.inputs)
    return array


def _loaded(path: Path, option: str) -> np.ndarray:
    """The array in a .npy file."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"`{option}` must be a .npy file, got {str(path)!r}: {one_line(error)}. Write it with numpy.save."
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub" or not np.isfinite(array).all():
        raise InputError(
            f"`{option}` must hold one array of finite, real numbers, got {str(path)!r}. Write it with numpy.save."
        )
    return array.astype(np.float64)


def _wrong_shape(option: str, wanted: str, array: np.ndarray, path: Path) -> InputError:
    return InputError(
        f"`{option}` must be of shape {wanted}, got {shape_text(array.shape)} in {str(path)!r}. "
        "`--input-shape` says the rest."
    )


# --- As JSON ------------------------------------------------------------------------------------------------


def facts(fn: OneExample, found: Ladder) -> dict[str, Any]:
    """What `python -m jaxact certify --json` prints."""
    return plain(
        {
            "model": fn.model.name,
            "kind": fn.model.kind,
            "input_shape": fn.shape,
            "called_on": fn.called_on,
            "output_shapes": fn.output_shapes,
            "dtype": jnp.dtype(found.dtype).name,
            "norm": 2,
            "region": _region_facts(found.region),
            "seed": found.seed,
            "ladder": [_rung_facts(rung, fn) for rung in found.rungs],
            "layers": [
                {"step": str(layer.step), "sizes": layer.step.sizes, "log10_factors": layer.log10_factors}
                for layer in found.layers
            ],
            "lower": found.lower.value,
            "upper": found.upper.value,
            "log10_ratio": found.log10_ratio,
            "ratio": found.ratio,
            "verdict": verdict(found),
        }
    )


def _rung_facts(rung: Rung, fn: OneExample) -> dict[str, Any]:
    missing = rung.missing if rung.refusal is None else _refusal(rung.refusal, fn, "")
    return {
        "name": rung.name,
        "kind": rung.kind,
        "norm": 2,
        "region": _region_facts(rung.region),
        "value": rung.value,
        "log10": rung.log10,
        "method": rung.method,
        "num_steps": rung.num_steps,
        "seconds": rung.seconds,
        "assumptions": [*rung.assumptions, *_limit_note(rung)],
        "where": _witness_facts(rung.witness),
        "missing": missing,
    }


def _limit_note(rung: Rung) -> list[str]:
    """Which option holds more entries jointly, where its limit was met."""
    limit = None if rung.certificate is None else rung.certificate.by_norms_beyond
    if limit is None or rung.name == "product of norms":
        return []
    return [f"a --memory-limit above {limit} holds more entries jointly, in more time and memory"]


def _witness_facts(witness: np.ndarray | None) -> dict[str, Any] | None:
    if witness is None:
        return None
    kept = witness.tolist() if witness.size <= _KEPT else None
    return {"norm": float(np.linalg.norm(witness)), "input": kept}


def _region_facts(region: Ball | Box | None) -> dict[str, Any] | None:
    if region is None:
        return None
    if isinstance(region, Ball):
        norm = float(np.linalg.norm(region.center))
        return {"shape": "ball", "radius": region.radius, "center_norm": norm}
    return {"shape": "box", "lower": float(region.lower.min()), "upper": float(region.upper.max())}
