"""Cells that fail by worker processes of this machine: the others go on, and what is missing is measured later."""

import io
import re

import pytest
from rich.console import Console
from troubles import Program, check_that_others_go_on

from train import limits, outcomes, pool
from train.config import ConfigError
from train.experiment import Cell
from train.progress import Display


def test_failing_cells_leave_the_others_as_they_are(whole, tmp_path):
    check_that_others_go_on(tmp_path, whole, "--workers", "2")


def test_workers_that_die_before_any_cell_end_the_run(tmp_path):
    program = Program(tmp_path, "--workers", "1")
    program.study.write_text(
        program.study.read_text().replace(
            "def get_config():", "import multiprocessing\n\n\ndef get_config():\n"
            "    if multiprocessing.parent_process():\n        os._exit(5)\n",
        )
    )  # fmt: skip
    status, _, err = program.call("run", "study.py")
    assert status == 2
    assert "error: a worker process ended with status 5 before it measured anything. The study, or" in err
    assert "0 of 10 cells are finished and kept" in err


class Chatty:
    """A crew of one worker, which tells progress for ever."""

    plan, num_told = None, 0

    def start(self, num_workers):
        return self

    def wait(self, workers, seconds):
        return workers

    def receive(self):
        self.num_told += 1
        assert self.num_told < 200_000
        return ("ready", None) if self.num_told == 1 else ("progress", (0.5, ""))

    def send(self, name):
        pass

    end = close = stop = join = lambda self, *_, **__: None


def test_a_cell_that_never_stops_telling_has_its_time_as_well():
    cells = [Cell("talks", {})]
    with Display(cells, Console(file=io.StringIO())) as display:
        ended = pool.side_by_side(None, cells, display, crew=Chatty(), num_workers=1, limit=0.1)
        assert next(ended).cause.startswith("it took longer than")


LIMITS = {"90": 90.0, "1e3": 1000.0, "45s": 45.0, "30m": 1800.0, "1.5h": 5400.0, "2d": 172800.0, "none": None}


@pytest.mark.parametrize("text", LIMITS)
def test_a_limit_of_time_is_read_with_its_unit(text):
    assert limits.seconds(text) == LIMITS[text]


@pytest.mark.parametrize("text", ["", "0", "-1", "h", "nan", "inf", "1 week", "30M"])
def test_what_is_no_limit_of_time_is_refused(text):
    with pytest.raises(ConfigError, match=r"`cell_timeout` must be a time above 0.*" + re.escape(repr(text))):
        limits.seconds(text)


def test_many_cells_that_fail_alike_are_told_as_one():
    failures = []
    for number in range(100):
        try:
            raise ValueError(f"{number} is wrong")
        except ValueError as error:
            failures.append(outcomes.failure_of(Cell(f"cell {number}", {}), error))
    failures.insert(50, outcomes.Failure("late", "it took longer than 0:01", "Wait."))
    text = str(outcomes.CellsFailedError(failures, 200))
    assert text.count("Traceback") == 1
    assert "101 of 200 cells failed:" in text
    assert re.search(r"- cell 0, .*cell 9, and 90 more: ValueError: 0 is wrong \(test_pool.py, line", text)
    assert "- late: it took longer than 0:01.\n  Wait." in text
