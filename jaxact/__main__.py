"""The command line of the library: describe activations, compare what they and initialisations do at depth."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from jaxact._cli._output import InputError
from jaxact.cache import use_compilation_cache

_DEFAULT_SIGMA_B = 0.05**0.5
_LAWS = ("gaussian", "orthogonal")
_SHAPINGS = ("dks", "tat")
_MOST_DIGITS = 400


class _Command(NamedTuple):
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


class _Parser(argparse.ArgumentParser):
    """Reports in the manner of all other errors."""

    def error(self, message: str):
        raise InputError(f"{message}. `{self.prog} --help` shows what can be given.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Args:
        arguments: the words after `python -m jaxact`; by default those of this process.

    Returns:
        0 if done; 2 for bad input, with one message on stderr, or without arguments, after help; 1 if what is found
        cannot be written.

    Raises:
        SystemExit: after `--help`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    if not arguments:
        parser.print_help()
        return 2
    if arguments[0] == "help":  # `help compare` is `compare --help`
        arguments = [*arguments[1:2], "--help"]
    try:
        _check_command(arguments[0])
        options = parser.parse_args(arguments)
        module, _, name = _COMMANDS[options.command].function.partition(":")
        status = getattr(importlib.import_module(module), name)(options)
        sys.stdout.flush()  # here, where a full disk can be reported
        return status
    except InputError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _silence_stdout()
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):  # a disk that is full or broken
            raise
        _silence_stdout()
        _fail(f"nothing can be written: {error.strerror}")
        return 1


def _silence_stdout() -> None:
    """What is still in the buffer would raise again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    program = "jaxact" if Path(sys.argv[0]).stem == "jaxact" else "python -m jaxact"  # as it was called
    parser = _Parser(
        prog=program,
        description="Which activation and initialisation will train at which depth, according to theory.",
        epilog=(
            "examples:\n"
            f'  {program} describe gelu "leaky_relu(0.2)" --plot gelu.svg\n'
            f"  {program} compare relu tanh gelu --depth 64\n"
            f"  {program} certify mymodule:model --input-shape 784\n"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, command in _COMMANDS.items():
        own = commands.add_parser(
            name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=command.details,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_options(own)
    return parser


def _check_command(word: str) -> None:
    if word.startswith("-") or word in _COMMANDS:
        return
    close = difflib.get_close_matches(word, _COMMANDS, 1)
    meant = f"Did you mean `{close[0]}`?" if close else f"The commands are {', '.join(_COMMANDS)}."
    raise InputError(f"there is no command {word!r}. {meant}")


def _describe_options(parser: argparse.ArgumentParser) -> None:
    _add_names(parser)
    parser.add_argument(
        "--sigma-b",
        type=_scale,
        default=_DEFAULT_SIGMA_B,
        metavar="S",
        help="bias scale of the second critical point and of the figure's correlation map; "
        "default: sqrt(0.05) = 0.2236",
    )
    parser.add_argument(
        "--batch-size", type=_batch, default=256, metavar="B", help="of batch norm, at least 4; default: 256"
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
        "--depth", type=_depth, default=64, metavar="L", help="number of layers, 2 to 10000; default: 64"
    )
    parser.add_argument(
        "--sigma-b",
        type=_scales,
        default=[0.0, _DEFAULT_SIGMA_B],
        metavar="S[,S]",
        help="bias scales of the critical initialisations, separated by commas; "
        "default: 0 and sqrt(0.05) = 0.2236",
    )
    parser.add_argument(
        "--weights",
        type=_some_of(_LAWS),
        default=list(_LAWS),
        metavar="LAW[,LAW]",
        help="laws of the weights: gaussian, orthogonal, or gaussian,orthogonal; default: both",
    )
    parser.add_argument(
        "--shaping",
        type=_some_of(_SHAPINGS),
        default=[],
        metavar="METHOD[,METHOD]",
        help="dks, tat, or dks,tat: compare each activation shaped for this depth as well; default: neither",
    )
    _add_json(parser)


_COMPARE_DETAILS = """\
initialisations (sigma_w^2 = fan_in times the weights' variance):
  variance-preserving  theory.gain, no bias
  critical             theory.critical_point at each --sigma-b
  lecun, pytorch       sigma_w = 1 and 1 / sqrt(3), no bias; Gaussian weights only. The law of independent
                       weights does not matter at infinite width, and PyTorch's bias is negligible there
  dks, tat             with --shaping: theory.shape, the activation between affine maps; sigma_w = 1, no bias

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
  singular values), largest_over_rms, gradient_decades, input_decades, conditioning_decades, score, why
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
        type=_shape,
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
        type=_count,
        default=50,
        metavar="N",
        help="of refining the certificate, 0 for none; default: 50",
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=30.0,
        metavar="S",
        help="end each refinement after so long; default: 30",
    )
    parser.add_argument(
        "--radius",
        type=_positive,
        metavar="R",
        help="also bound it in the ball of this radius about --center",
    )
    parser.add_argument(
        "--center", default="zeros", metavar="FILE.npy", help="an example, the ball's centre; default: zeros"
    )
    parser.add_argument(
        "--box",
        type=_finite,
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
        type=_count,
        default=50,
        metavar="N",
        help="of that search, from every start; default: 50",
    )
    parser.add_argument(
        "--seed", type=_count, default=0, metavar="N", help="of everything random; default: 0"
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


def _list_options(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)


#: Every subcommand.
_COMMANDS = {
    "describe": _Command(
        "jaxact._cli._describe:run",
        "facts, moments, gain and critical points of activations",
        _describe_options,
        _DESCRIBE_DETAILS,
    ),
    "compare": _Command(
        "jaxact._cli._compare:run",
        "rank activations and initialisations by what depth does to signals and gradients",
        _compare_options,
        _COMPARE_DETAILS,
    ),
    "certify": _Command(
        "jaxact._cli._certify:run",
        "bound the Lipschitz constant of your own model from both sides",
        _certify_options,
        _CERTIFY_DETAILS,
    ),
    "list": _Command(
        "jaxact._cli._describe:list_names", "the names of all activations, with their formulas", _list_options
    ),
}


def _add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help='activations: gelu, "leaky_relu(0.2)"; `list` shows all'
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")


def _scale(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"a bias scale must be a finite, nonnegative number, got {text!r}")
    return value


def _scales(text: str) -> list[float]:
    return [_scale(part) for part in text.split(",")]


def _some_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        for each in chosen:
            if each not in choices:
                raise argparse.ArgumentTypeError(f"choose from {', '.join(choices)}, got {each!r}")
        return chosen

    return parse


def _shape(text: str) -> tuple[int, ...]:
    sizes = [part.strip() for part in text.strip("()[] ").rstrip(",").replace("x", ",").split(",")]
    if not all(size.isascii() and size.isdigit() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"a shape must be positive integers, 784 or 28,28,1, got {text!r}")
    return tuple(map(int, sizes))


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"it must be a positive, finite number, got {text!r}")
    return value


def _finite(text: str) -> float:
    value = _number(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"it must be a finite number, got {text!r}")
    return value


def _count(text: str) -> int:
    return _integer(text, "it", 0)


def _batch(text: str) -> int:
    return _integer(text, "a batch size", 4)


def _depth(text: str) -> int:
    return _integer(text, "a depth", 2, 10_000)


def _integer(text: str, what: str, least: int, most: int | None = None) -> int:
    # Python reads no more than 4300 digits.
    is_long = len(text) > _MOST_DIGITS
    got = f"{len(text)} characters" if is_long else repr(text)
    if is_long or not (text.isascii() and text.isdigit()) or int(text) < least:
        raise argparse.ArgumentTypeError(f"{what} must be an integer of at least {least}, got {got}")
    if most is not None and int(text) > most:
        raise argparse.ArgumentTypeError(f"{what} must be at most {most}, got {got}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def run() -> NoReturn:
    """The program: what `python -m jaxact` and the script `jaxact` do with the words of this process."""
    # Small programs in float64: an accelerator would only lose its memory to them.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    use_compilation_cache()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        # XLA may still compile in threads of its own: end before Python tears anything down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)


if __name__ == "__main__":
    run()
