import io
import itertools
import re
import time

import jax.numpy as jnp
import pytest
from rich.console import Console

from jaxact import activations
from train.experiment import Cell
from train.progress import Display, Forecast, Waiting, clock


def cell(block, depth):
    return Cell(f"{block}/{depth}", {"block": block, "depth": depth})


CELLS = [cell(block, depth) for block, depth in itertools.product(("plain", "bn"), (1, 10, 100))]


def test_a_forecast_goes_by_the_cells_that_share_most_coordinates():
    forecast = Forecast()
    assert forecast.seconds(cell("plain", 1)) is None
    forecast.record(cell("plain", 1), 1.0)
    assert forecast.seconds(cell("plain", 10)) == 1.0
    assert forecast.seconds(cell("bn", 100)) == 1.0  # shares nothing: the mean of all
    forecast.record(cell("plain", 10), 10.0)
    assert forecast.seconds(cell("bn", 10)) == 10.0
    assert forecast.seconds(cell("plain", 100)) == 5.5
    assert forecast.seconds(cell("plain", 10)) == 10.0


def test_a_forecast_tells_objects_apart_by_what_they_equal():
    def using(fn, depth):
        return Cell(f"{fn.name}/{depth}", {"activation": fn, "depth": depth, "sizes": (depth, 2)})

    own = activations.from_callable(lambda x: jnp.tanh(2 * x), name="mine")
    forecast = Forecast()
    forecast.record(using(activations.parse("leaky_relu(0.2)"), 1), 1.0)
    forecast.record(using(own, 2), 5.0)
    assert forecast.seconds(using(activations.leaky_relu(0.2), 3)) == 1.0
    assert forecast.seconds(using(own, 3)) == 5.0
    assert forecast.seconds(using(activations.relu, 3)) == 3.0  # shares nothing: the mean of all


def test_a_log_gets_few_lines_and_the_last_one(monkeypatch):
    now = itertools.count(step=0.25)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    console = Console(file=io.StringIO(), width=40)
    with Display(CELLS, console) as display:
        display.skip(CELLS[0], 1.0)
        for each in CELLS[1:]:
            report = display.start(each)
            for tick in range(100):
                report(tick / 100, "training")
            display.finish(each, 30.0)
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("[1/6] plain/10 ")
    assert 10 < len(lines) < next(now) / 10 + 2
    assert lines[-2] == "[6/6] bn/100 done in 30.0 s"
    assert lines[-1].startswith("The cells took ")
    assert any("training, about" in line and line.endswith("left") for line in lines)


def test_failed_cells_are_not_counted_as_done_and_said_once_a_cause():
    console = Console(file=io.StringIO(), width=200)
    with Display(CELLS, console) as display:
        for each in CELLS[:2]:
            display.start(each)
        display.start(CELLS[0])(0.5)  # another try
        display.fail(CELLS[0].name, "it took too long", is_first=True)
        display.fail(CELLS[1].name, "it took too long", is_first=False)
        for each in CELLS[2:]:
            display.start(each)
            display.finish(each, 1.0)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "plain/1 failed: it took too long. The others go on."
    assert lines[1].startswith("[1/6, 2 failed] plain/100 done in 1.0 s")
    assert lines[-2] == "[4/6, 2 failed] bn/100 done in 1.0 s"
    assert not any("plain/10 " in line for line in lines)


def test_a_terminal_shows_the_cell_how_many_are_left_and_the_time_to_go():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Display(CELLS, console) as display:
        for each in CELLS[:2]:
            display.start(each)
            display.finish(each, 90.0)
        display.start(CELLS[2])(0.5, "training")
        display._bars.refresh()
    text = console.file.getvalue()
    assert "2/6" in text
    assert "plain/100 training" in text
    assert "50%" in text
    assert "4:30 left" in text  # three cells of 90 s each; the current one is half done in no time
    assert text.rstrip().endswith("\x1b[?25h")  # the cursor is shown again


def test_cells_that_run_side_by_side_share_the_time_to_go():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Display(CELLS, console) as display:
        display.start(CELLS[0])
        display.finish(CELLS[0], 60.0)
        for each in CELLS[1:3]:
            display.start(each)
        display._bars.refresh()
    text = console.file.getvalue()
    assert "plain/10 " in text
    assert "plain/100 " in text
    assert "2:30 left" in text  # five cells of a minute, two at a time


@pytest.mark.parametrize(("fraction", "shown"), [(-1.0, "0%"), (2.0, "100%"), (float("-inf"), "0%")])
def test_a_fraction_outside_the_unit_interval_is_clipped(fraction, shown):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Display(CELLS, console) as display:
        display.start(CELLS[0])(fraction, "training")
        display._bars.refresh()
    line = next(line for line in console.file.getvalue().splitlines()[::-1] if "plain/1 training" in line)
    assert re.search(r"(\S+%)", line)[1] == shown


def per_cell(monkeypatch, work, number):
    """How often a cell's time is estimated, for each cell of a run of so many."""
    calls = []
    seconds = Forecast.seconds
    cells = [cell(block, depth) for block in ("plain", "bn") for depth in range(number // 2)]
    with monkeypatch.context() as patch:
        patch.setattr(Forecast, "seconds", lambda *given: calls.append(1) or seconds(*given))
        work(cells)
    return len(calls) / number


def shown(cells):
    with Display(cells, Console(file=io.StringIO())) as display:
        for each in cells:
            display.start(each)(0.5, "training")
            display.finish(each, 1.0)


def taken_over(cells):
    """One worker takes all of another's cells, one by one, asking each time how long the others take."""
    forecast = Forecast()
    stretch = Waiting(cells, forecast)
    while stretch:
        assert stretch.seconds() >= 0.0
        forecast.record(stretch.last(), 1.0)


@pytest.mark.parametrize("work", [shown, taken_over])
def test_the_bookkeeping_of_a_cell_does_not_grow_with_their_number(monkeypatch, work):
    few, many = (per_cell(monkeypatch, work, number) for number in (400, 4000))
    assert many < 1.3 * few


def test_what_waits_is_taken_in_order_and_its_time_is_near_the_sum():
    forecast = Forecast()
    cells = [cell("plain", depth) for depth in range(100)]
    waiting = Waiting(cells, forecast)
    assert waiting.seconds() == float("inf")
    assert (waiting.first(), waiting.last(), waiting.take("plain/50")) == (cells[0], cells[99], cells[50])
    forecast.record(cells[0], 2.0)
    assert waiting.seconds() == 97 * 2.0
    for _ in range(90):
        forecast.record(waiting.first(), 4.0)
        exact = len(waiting) * forecast.seconds(cells[98])
        assert waiting.seconds() == pytest.approx(exact, rel=0.2)
    while waiting:
        waiting.first()
    assert waiting.seconds() == 0.0


def test_durations_read_as_clocks():
    assert [clock(seconds) for seconds in (0, 59.6, 3599, 3600, 36061)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
        "10:01:01",
    ]


def test_reports_of_a_thousand_workers_cost_the_run_little():
    cells = [cell(f"block {number % 3}", number) for number in range(1000)]
    spent = {}
    for num_running in (10, 1000):
        with Display(cells, Console(file=io.StringIO())) as display:
            reports = [display.start(each) for each in cells[:num_running]]
            began = time.process_time()
            for number in range(2000):
                reports[number % num_running](0.5, "training")
            spent[num_running] = time.process_time() - began
    assert spent[1000] < 10 * spent[10]  # it was a hundredfold
