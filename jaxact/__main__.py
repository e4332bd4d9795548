"""The command line of the library: describe activations, compare what they and initialisations do at depth."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jaxact import xla
from jaxact._cli._commands import COMMANDS
from jaxact._cli._output import InputError
from jaxact._version import installed
from jaxact.cache import use_compilation_cache
from jaxact.streams import print_any_text


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
        options.words = arguments  # as a page says how it was made
        module, _, name = COMMANDS[options.command].function.partition(":")
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
            f"  {program} diagnose mymodule:model --input-shape 32,784 --html report.html\n"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"jaxact {installed()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
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
    if word.startswith("-") or word in COMMANDS:
        return
    close = difflib.get_close_matches(word, COMMANDS, 1)
    meant = f"Did you mean `{close[0]}`?" if close else f"The commands are {', '.join(COMMANDS)}."
    raise InputError(f"there is no command {word!r}. {meant}")


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def run() -> NoReturn:
    """The program: what `python -m jaxact` and the script `jaxact` do with the words of this process."""
    # Small programs in float64: an accelerator would only lose its memory to them.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    print_any_text()
    use_compilation_cache()
    xla.compile_fast()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        # XLA may still compile in threads of its own: end before Python tears anything down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)


if __name__ == "__main__":
    run()
