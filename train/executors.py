"""What measures the cells of a run: this process, worker processes beside it, or a Ray cluster."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from train import config, pool, workers
from train.config import ConfigError
from train.request import Request


def chosen(asked: Request, words: Sequence[str]) -> tuple[int, Callable[..., Any]]:
    """Choose by what a command line asks for; a cluster is connected to, or started, at once.

    Args:
        asked: what `words` mean.
        words: those after `python -m train run`.

    Returns:
        How many worker processes there are on this machine, and the `measure` of `train.runner.run`.

    Raises:
        ConfigError: if there is no such cluster, or a limit of time that nothing could keep.
    """
    cells, fields = asked.experiment.cells(), config.resolved(asked.experiment)
    crew: pool.Crew
    if asked.executor == "ray":
        from train.cluster import Cluster

        crew = Cluster(words, fields, address=asked.ray_address)
        number = asked.workers or crew.default_number(len(cells))
        return 0, functools.partial(
            pool.side_by_side, crew=crew, num_workers=number, limit=asked.cell_timeout
        )
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
