"""Reads a task from text: `"digits"`, `"gaussian_mixture(dimension=8)"`."""

import ast
from dataclasses import fields
from typing import Annotated, Any

import tyro

from train import config
from train.tasks._task import Task


def names() -> tuple[str, ...]:
    """The names that `parse` knows: every imported subclass of `Task` that has one, sorted.

    >>> "digits" in names()
    True
    """
    return tuple(sorted(_types()))


def get(name: str, **parameters: Any) -> Task:
    """A task by its name and parameters.

    Args:
        name: one of `names()`; hyphens and capitals are forgiven ("Fashion-MNIST").
        **parameters: the task's fields.

    Raises:
        ValueError: an unknown name or field (with the closest ones), or a value outside of its range.

    >>> get("digits", num_train=100)
    Digits(num_train=100, num_test=None)
    """
    types = _types()
    known = {_plain(each): each for each in types}
    if _plain(name) not in known:
        hint = config.hint(_plain(name), known, lambda close: repr(known[close]))
        raise ValueError(f"`task` must be one of {', '.join(sorted(types))}, got {name!r}.{hint}")
    kind = types[known[_plain(name)]]
    allowed = [field.name for field in fields(kind)]
    for parameter in parameters:
        if parameter not in allowed:
            hint = config.hint(parameter, allowed, repr)
            raise ValueError(
                f"task {kind.name} has no parameter {parameter!r}, only {', '.join(allowed)}.{hint}"
            )
    return kind(**parameters)


def parse(text: str) -> Task:
    """Reads a task from text: a name, or a name with parameters as in a Python call. Inverse of `str(task)`.

    Args:
        text: for example "digits", "fashion_mnist(num_train=10000)", "teacher_student(depth=4,
            activation='relu')".

    Raises:
        ValueError: the text is not of this form, or as `get`.

    >>> str(parse("gaussian-mixture(num_classes=3)"))
    'gaussian_mixture(num_classes=3)'
    """
    name, bracket, rest = text.strip().partition("(")
    return get(name.strip(), **(_parameters(text, bracket + rest) if bracket else {}))


def check_images(name: str, task: Task) -> None:
    """Raises ValueError unless the task's inputs are images, as a network with convolutions needs them.

    Loads nothing, so that an experiment's `__post_init__` may call it.

    Args:
        name: the field that holds the task, for the message.
        task: whose inputs.

    >>> check_images("task", get("digits"))
    """
    if not task.holds_images:
        shapes: dict[str, Any] = {each: kind.input_shape for each, kind in sorted(_types().items())}
        others = [each for each, shape in shapes.items() if isinstance(shape, tuple) and len(shape) == 3]
        raise ValueError(
            f"`{name}` must hold images (height, width, channel) for a network with convolutions, got {task}, "
            f"whose inputs are {task.input_shape}. Use {' or '.join(others)}."
        )


def _parameters(text: str, call: str) -> dict[str, Any]:
    form = (
        f"`task` must be a name or name(parameter=value, ...) such as 'digits(num_train=500)', got {text!r}."
    )
    try:
        tree = ast.parse("task" + call, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(form) from error
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.args:
        raise ValueError(form)
    parameters = {}
    for keyword in tree.keywords:
        try:
            value = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, RecursionError, MemoryError) as error:
            shown = ast.unparse(keyword.value)
            raise ValueError(f"{form} The value {shown} is not a literal; put text into quotes.") from error
        if keyword.arg is None or keyword.arg in parameters:
            raise ValueError(form)
        parameters[keyword.arg] = value
    return parameters


def _types() -> dict[str, type[Task]]:
    found, queue = {}, [Task]
    while queue:
        kind = queue.pop()
        queue += kind.__subclasses__()
        if "name" in vars(kind):
            found[kind.name] = kind
    return found


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


FromText = Annotated[
    Task,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="TASK",
        instance_from_str=lambda texts: parse(texts[0]),
        is_instance=lambda value: isinstance(value, Task),
        str_from_instance=lambda task: [str(task)],
    ),
]
"""The type of a config's field `task: tasks.FromText`: tyro then reads `--task "digits(num_train=500)"`."""
