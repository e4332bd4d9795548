"""Every command with its options and what its help says; imports nothing that is slow."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jaxact._cli import _values

_DEFAULT_SIGMA_B = 0.05**0.5
_LAWS = ("gaussian", "orthogonal")
_SHAPINGS = ("dks", "tat")


class Command(NamedTuple):
    """One subcommand; its module is imported when it is called, since jax takes a second and help should not.

    Attributes:
        function: "module:name" of what runs it: options -> exit status; raises InputError for what cannot be done.
        summary: one line for the list of commands.
        add_options: declares its options.
        details: what follows the options in its help.
    """

    function: str
    summary: str
    add_options: Callable[[argparse.ArgumentParser], None]
    details: str = ""


def _describe_options(parser: argparse.ArgumentParser) -> None:
    _add_names(parser)
    parser.add_argument(
        "--sigma-b",
        type=_values.scale,
        default=_DEFAULT_SIGMA_B,
        metavar="S",
        help="bias scale of the second critical point and of the figure's correlation map; "
        "default: sqrt(0.05) = 0.2236",
    )
    parser.add_argument(
        "--batch-size",
        type=_values.batch,
        default=256,
        metavar="B",
        help="of batch norm, at least 4; default: 256",
    )
    _add_json(parser)
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw f, f', the correlation map and the phase diagram into a .png, .svg or .html file; needs "
        'pip install "jaxact[study]"',
    )


_DESCRIBE_DETAILS = """\
--json prints {"activations": [...]}, each with
  name, formula, reference, range, slope_range, lipschitz, kinks, monotone, odd, homogeneous, argmin, minimum, is_exact
  moments: {mean, second_moment, variance, slope, slope_second_moment, slope_fourth_moment, zero_probability,
    dead_probability} of f(z) and f'(z), z ~ N(0, 1)
  gain, gain_stability, gain_missing (why it is null)
  critical_points: [{sigma_b, sigma_w, q_star, stability, missing}]
  batch_norm_gradient_growth: [{batch_size (null: infinite), growth, missing}]
NaN is null, infinities are the strings "inf" and "-inf".
"""


def _compare_options(parser: argparse.ArgumentParser) -> None:
    _add_names(parser)
    parser.add_argument(
        "--depth",
        type=_values.depth,
        default=64,
        metavar="L",
        help="number of layers, 2 to 10000; default: 64",
    )
    parser.add_argument(
        "--sigma-b",
        type=_values.scales,
        default=[0.0, _DEFAULT_SIGMA_B],
        metavar="S[,S]",
        help="bias scales of the critical initialisations, separated by commas; "
        "default: 0 and sqrt(0.05) = 0.2236",
    )
    parser.add_argument(
        "--weights",
        type=_values.some_of(_LAWS),
        default=list(_LAWS),
        metavar="LAW[,LAW]",
        help="laws of the weights: gaussian, orthogonal, or gaussian,orthogonal; default: both",
    )
    parser.add_argument(
        "--shaping",
        type=_values.some_of(_SHAPINGS, none="none"),
        default=list(_SHAPINGS),
        metavar="METHOD[,METHOD]",
        help="dks, tat, dks,tat or none: how to shape each activation for this depth as well; default: both",
    )
    _add_json(parser)


_COMPARE_DETAILS = """\
initialisations (sigma_w^2 = fan_in times the weights' variance):
  variance-preserving  theory.gain, no bias
  critical             theory.critical_point at each --sigma-b
  lecun, pytorch       sigma_w = 1 and 1 / sqrt(3), no bias; Gaussian weights only. The law of independent
                       weights does not matter at infinite width, and PyTorch's bias is negligible there
  dks, tat             theory.shape, the activation between affine maps; sigma_w = 1, no bias

score, in decades, lower is better: what a plain network of L layers at infinite width loses,
  gradient     |log10 of the growth of a gradient's norm over all layers|, starting at second moment 1 of the
               preactivations
  inputs       -log10 of what is left of the difference between a similar pair (correlation 0.9) and an unrelated
               one (0), at most 12
  conditioning log10 of the largest singular value of the Jacobian over the rms one
and their sum is the score. xi_c and xi_gradient are depth scales at the fixed point that such signals reach.

--json prints {"depth", "score", "ranking": [...], "missing": [{activation, initialisation, reason}]}, each rank with
  rank, activation, initialisation, weights, sigma_w, sigma_b, q_star, chi, phase, c_star, xi_c, xi_gradient,
  q_end, growth_decades (log10 of the squared gradient's growth), correlation_end (of the unrelated pair),
  contrast_left, contrast_depth (the layer after which less than 1 % is left, or null), zero_probability (of
  singular values), largest_over_rms, gradient_decades, input_decades, conditioning_decades, score, why,
  code (the lines that build the network in Flax NNX; below the table for the first of them)
NaN is null, infinities are the strings "inf" and "-inf".
"""


def _certify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODULE:NAME",
        help="a function of one array, an NNX or Equinox module, a pair (Linen module, variables), or a function "
        "without arguments that returns one of these; the current directory is searched first",
    )
    parser.add_argument(
        "--input-shape",
        type=_values.shape,
        required=True,
        metavar="SHAPE",
        help="of one example, without a batch axis: 784, or 28,28,1",
    )
    parser.add_argument(
        "--batch",
        action=argparse.BooleanOptionalAction,
        help="whether the model takes a batch, and is called on [1, *SHAPE]; default: found out",
    )
    parser.add_argument(
        "--steps",
        type=_values.count,
        default=50,
        metavar="N",
        help="of refining the certificate, 0 for none; default: 50",
    )
    parser.add_argument(
        "--seconds",
        type=_values.positive,
        default=30.0,
        metavar="S",
        help="end each refinement after so long; default: 30",
    )
    parser.add_argument(
        "--memory-limit",
        type=_values.at_least_one,
        default=2048,
        metavar="N",
        help="entries that certificates hold jointly; beyond, they go on with norms, which is looser; time and memory "
        "grow with its square and more; default: 2048",
    )
    parser.add_argument(
        "--radius",
        type=_values.positive,
        metavar="R",
        help="also bound it in the ball of this radius about --center",
    )
    parser.add_argument(
        "--center", default="zeros", metavar="FILE.npy", help="an example, the ball's centre; default: zeros"
    )
    parser.add_argument(
        "--box",
        type=_values.finite,
        nargs=2,
        metavar=("LO", "HI"),
        help="also bound it where every entry is in [LO, HI]",
    )
    parser.add_argument(
        "--inputs",
        type=Path,
        metavar="FILE.npy",
        help="examples [n, *SHAPE] to start the search for steep places from, the first 32; default: standard normal",
    )
    parser.add_argument(
        "--lower-steps",
        type=_values.count,
        default=50,
        metavar="N",
        help="of that search, from every start; default: 50",
    )
    parser.add_argument(
        "--seed", type=_values.count, default=0, metavar="N", help="of everything random; default: 0"
    )
    _add_json(parser)


_CERTIFY_DETAILS = """\
the ladder, all in the Euclidean norm, over all inputs, and within --radius or --box if given:
  slope attained    lipschitz.lower_bound: the norm of the Jacobian at the steepest place that was found
  CLEVER            lipschitz.clever: an ESTIMATE from sampled slopes, on either side of the constant
  ellipsoid         lipschitz.certify, refined: a certified upper bound, rounding included
  closed form       the same without refinement
  product of norms  the same with norms of layers alone, added where paths meet
The constant is between the first and the smallest certified one. The second table says how much each step multiplies
each bound by: its product is the bound. Modules are put into inference mode.

example:
  python -m jaxact certify mymodule:model --input-shape 784 --radius 0.5 --center image.npy

--json prints {"model", "kind", "input_shape", "called_on" (the shape that the model is given), "output_shapes",
"dtype" (of the search), "norm", "region", "seed", "ladder", "layers", "lower", "upper", "log10_ratio", "ratio" (of the
best certificate to the slope attained, in the region if there is one), "verdict"}, with
  region   null for all inputs, {shape: "ball", radius, center_norm} or {shape: "box", lower, upper}
  ladder   [{name, kind ("attained", "certified upper bound", "estimate" or "refused"), norm, region, value, log10,
           method, num_steps, seconds, assumptions, where ({norm, input}: what attains it; input up to 4096 entries),
           missing (why there is no value)}]
  layers   [{step, sizes: [entries in, out], log10_factors: {name of a bound: log10 of what the step multiplies it by}}]
NaN is null, infinities are the strings "inf" and "-inf".
"""


def _diagnose_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODULE:NAME",
        help="an NNX or Equinox module, a pair (Linen module, variables) or (function of (params, inputs), params), "
        "or a function without arguments that returns one of these; or a function of (params, inputs) and --params; "
        "the current directory is searched first",
    )
    parser.add_argument(
        "--params",
        metavar="NAME",
        help="the parameters of a function: NAME in the same module, or MODULE:NAME",
    )
    parser.add_argument(
        "--input-shape",
        type=_values.shape,
        metavar="SHAPE",
        help="of the whole batch, inputs first: 32,784, or 32,28,28,1; they are drawn standard normal",
    )
    parser.add_argument(
        "--input-dtype",
        choices=("float32", "float16", "int32", "int8", "uint8"),
        metavar="DTYPE",
        help="of the inputs: float32, float16, int32, int8 or uint8; default: float32, or as the file has them",
    )
    parser.add_argument(
        "--input-max",
        type=_values.at_least_one,
        metavar="N",
        help="draw integers from 0 to N - 1, as tokens",
    )
    parser.add_argument(
        "--seed", type=_values.count, default=0, metavar="N", help="of what is drawn; default: 0"
    )
    parser.add_argument(
        "--batch",
        metavar="FILE.npz[:NAME]",
        help='inputs from a file: the array NAME, or "inputs", or the only one; with an array "labels" or "y" beside '
        "it the gradient is that of their cross-entropy",
    )
    parser.add_argument(
        "--loss",
        metavar="MODULE:NAME",
        help="a function of outputs, of (outputs, inputs), or of (outputs, labels) where the file has labels, to a "
        "scalar; default: cross-entropy with labels, else a fixed random projection of the outputs",
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help="of gradient descent, to be held against 2 over the sharpness of the loss; needs labels or --loss",
    )
    parser.add_argument(
        "--jacobian",
        action=argparse.BooleanOptionalAction,
        help="whether to find the ends of the Jacobian's singular values; default: for up to 16 products",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help='write an interactive page that needs no network; needs pip install "jaxact[study]"',
    )
    _add_json(parser)


_DIAGNOSE_DETAILS = """\
every product of a parameter, and of two arrays that depend on the input, in order of execution:
  E z^2      second moment of the product, before any bias; theory: what mean-field theory expects there
  gradient   root mean square of the loss's gradient at the product; theory: the same, given it at the outputs
  cosine     mean cosine between the products of different inputs
  zero, dead, saturated   after the activation that follows: shares of exact zeros, of units that are zero for every
             input, and of slopes below 1 % of the largest
Theory is exact at infinite width at initialisation, an approximation elsewhere. Modules must be in inference mode.

example:
  python -m jaxact diagnose mymodule:model --batch data.npz --html report.html

--json prints {"model", "kind", "inputs": {shape, dtype, from}, "loss" (which gradients these are), "rows", "notes",
"findings"}, each row with
  name, line, kind, shape, fan_in, weight_scale, mean, second_moment, cosine, effective_rank, zero, dead, saturated,
  gradient, gradient_factor (over that of the next row), largest, smallest (singular values of the Jacobian from the
  first input to here), is_exact (whether these are), predicted_mean, predicted_second_moment, predicted_cosine,
  predicted_gradient, predicted_gradient_factor, reason (why there is no theory)
NaN is null, infinities are the strings "inf" and "-inf".
"""


def _list_options(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)


def _add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help='activations: gelu, "leaky_relu(0.2)"; `list` shows all'
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")


#: Every subcommand.
COMMANDS = {
    "describe": Command(
        "jaxact._cli._describe:run",
        "facts, moments, gain and critical points of activations",
        _describe_options,
        _DESCRIBE_DETAILS,
    ),
    "compare": Command(
        "jaxact._cli._compare:run",
        "rank activations and initialisations by what depth does to signals and gradients",
        _compare_options,
        _COMPARE_DETAILS,
    ),
    "certify": Command(
        "jaxact._cli._certify:run",
        "bound the Lipschitz constant of your own model from both sides",
        _certify_options,
        _CERTIFY_DETAILS,
    ),
    "diagnose": Command(
        "jaxact._cli._diagnose:run",
        "measure every product of your own model, with theory beside it",
        _diagnose_options,
        _DIAGNOSE_DETAILS,
    ),
    "list": Command(
        "jaxact._cli._describe:list_names", "the names of all activations, with their formulas", _list_options
    ),
}
