"""The diagnose command: from its options to the diagnosis of a user's own model, as a table, as JSON and as a page."""

import argparse
import contextlib
import dataclasses
import datetime
import importlib
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from jaxact import adapters
from jaxact._cli._diagnose_inputs import Inputs, cross_entropy, inputs_of, on_labels
from jaxact._cli._output import InputError, errors_in_options, in_options, plain, print_json, progress
from jaxact.adapters import Parametric, shape_text
from jaxact.diagnosis import Diagnosis, diagnose
from jaxact.files import write_atomically

_WIDE = 200  # characters, where nobody looks: a table cut to 80 is of no use to a program that reads it
_MOST_ROWS = 60
_REMEDIES = {
    "params": "Give its parameters, --params NAME, or name a pair (function, params).",
    "inputs": "--input-shape, inputs first, and --input-dtype must be what the model was built for.",
    "learning_rate": "Give a positive rate, and labels in --batch, or --loss.",
}


def run(options: argparse.Namespace) -> int:
    """Print the diagnosis of `options.model`, and write its page if a file was given."""
    if options.html is not None:
        _check_page(options.html)
    # What a user's module prints must not get between the lines of JSON.
    with contextlib.redirect_stdout(sys.stderr):
        inputs = inputs_of(options)
        with errors_in_options({}, _REMEDIES):
            model, loss = _model(options), _loss(options, inputs)
        found = _diagnosis(options, model, inputs, loss)
    if options.json:
        print_json(facts(options.model, model, inputs, found))
    else:
        _print(options.model, model, inputs, found)
    if options.html is not None:
        _write_page(options, model, inputs, found)
    return 0


def facts(name: str, model: Parametric, inputs: Inputs, found: Diagnosis) -> dict[str, Any]:
    """What `python -m jaxact diagnose --json` prints."""
    return plain(
        {
            "model": name,
            "kind": model.kind,
            "inputs": {
                "shape": inputs.values.shape,
                "dtype": str(inputs.values.dtype),
                "from": inputs.source,
            },
            "loss": found.loss,
            "rows": [dataclasses.asdict(row) for row in found.rows],
            "notes": found.notes,
            "findings": list(map(_finding_facts, found.findings)),
        }
    )


def _finding_facts(finding: Any) -> Any:
    return dataclasses.asdict(finding) if dataclasses.is_dataclass(finding) else {"text": str(finding)}  # type: ignore[arg-type]


# --- The model and the loss ---------------------------------------------------------------------------------


def _model(options: argparse.Namespace) -> Parametric:
    value = adapters.import_object(options.model)
    if options.params is None:
        return adapters.as_parametric(value, name=options.model)
    module = options.model.partition(":")[0]
    name = options.params if ":" in options.params else f"{module}:{options.params}"
    params = adapters.made(adapters.import_object(name), name=name)
    return adapters.as_parametric((value, params), name=options.model)


def _loss(options: argparse.Namespace, inputs: Inputs) -> Any:
    if options.loss is None:
        return None if inputs.labels is None else cross_entropy(inputs.labels)
    loss = adapters.import_object(options.loss)
    return loss if inputs.labels is None else on_labels(loss, inputs.labels)


def _diagnosis(options: argparse.Namespace, model: Parametric, inputs: Inputs, loss: Any) -> Diagnosis:
    drawn = "`--input-shape`" if options.batch is None else "`--batch`"
    subjects = {"fn": options.model, "batch": drawn, "loss": options.loss or "the cross-entropy"}
    subjects["learning_rate"] = "`--learning-rate`"
    subjects["params"] = "the parameters" if options.params is None else f"`--params {options.params}`"
    try:
        with progress() as say:
            say("the diagnosis")
            return diagnose(
                model,
                inputs.values,
                loss=loss,
                jacobian=options.jacobian,
                learning_rate=options.learning_rate,
            )
    except (TypeError, ValueError) as error:
        if isinstance(error.__cause__, InputError):  # of the cross-entropy, told as the fault of a loss
            raise error.__cause__ from None
        words = in_options(error, subjects, _REMEDIES)
        is_told = getattr(error, "rule", None) is not None
        raise InputError(words if is_told else f"{options.model} cannot be diagnosed: {words}") from error


# --- In print -----------------------------------------------------------------------------------------------


def _print(name: str, model: Parametric, inputs: Inputs, found: Diagnosis) -> None:
    width = shutil.get_terminal_size((_WIDE, 24)).columns if sys.stdout.isatty() else _WIDE
    print(
        f"{name}: {model.kind}, inputs {inputs.values.dtype}{shape_text(inputs.values.shape)}, {inputs.source}"
    )
    print(found.text(width, _MOST_ROWS))
    if len(found.rows) > _MOST_ROWS or width < _WIDE:
        print("--html and --json have every row and column.")


# --- As a page ----------------------------------------------------------------------------------------------


def _check_page(path: Path) -> None:
    """Refuse at once what could not be written after a minute of computing."""
    try:
        for name in ("altair", "jinja2", "vl_convert"):
            importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"`--html` draws with altair, jinja2 and vl-convert, but {error.name} is missing: "
            'pip install "jaxact[study]"'
        ) from error
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise InputError(f"`--html` must be a .html file, got {str(path)!r}. Write --html report.html.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"`--html` needs an existing folder, got {str(path)!r}. Make {path.parent} first.")


def _write_page(options: argparse.Namespace, model: Parametric, inputs: Inputs, found: Diagnosis) -> None:
    now = datetime.datetime.now(datetime.UTC)
    making = {
        "command": shlex.join(["python", "-m", "jaxact", *options.words]),
        "model": f"{options.model}, {model.kind}",
        "inputs": f"{inputs.values.dtype}{shape_text(inputs.values.shape)}, {inputs.source}",
        "gradient of": found.loss,
        "made": f"{now:%Y-%m-%d %H:%M UTC}",
    }
    is_there = options.html.exists()
    try:
        write_atomically(options.html, found.page(options.model, making).encode())
    except OSError as error:
        raise InputError(f"cannot write {options.html}: {error.strerror or error}.") from error
    if not options.json:
        print(f"page  {options.html}{', in place of what was there' if is_there else ''}")
