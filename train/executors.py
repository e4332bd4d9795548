"""What measures the cells of a run: this process, or worker processes beside it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from train import config, pool, workers
from train.config import ConfigError
from train.request import Request


def chosen(asked: Request, words: Sequence[str]) -> tuple[int, Callable[..., Any]]:
    """Choose by what a command line asks for.

    Args:
        asked: what `words` mean.
        words: those after `python -m train run`.

    Returns:
        How many worker processes there are and the `measure` of `train.runner.run`.

    Raises:
        ConfigError: for a limit of time that nothing could keep.
    """
    cells, fields = asked.experiment.cells(), config.resolved(asked.experiment)
    number = workers.default_number(len(cells)) if asked.workers is None else asked.workers
    if number == 0 and asked.cell_timeout is not None:
        raise ConfigError(
            "`cell_timeout` needs a worker process, which can be killed; this run has none beside it. "
            "Add --workers 1, or --cell-timeout none."
        )
    if number == 0:
        return 0, workers.in_this_process
    crew = workers.Processes(words, fields)
    return number, functools.partial(
        pool.side_by_side, crew=crew, num_workers=number, limit=asked.cell_timeout
    )
