"""Every study in configs/ runs by its smoke test, and what it stores is described, drawn and put in words."""

from pathlib import Path

import pytest

from train import config, results

OTHERS = sorted(set((Path(__file__).parents[2] / "configs").glob("*.py")))


@pytest.mark.parametrize(
    "path",
    [path for path in OTHERS if path.stem not in ("depth_sweep", "phase_diagram", "chapter")],
    ids=lambda path: path.stem,
)
def test_runs_by_its_smoke_and_reports(path):  # the others: in files of their own, which share the runs
    experiment = config.load(path).smoke()
    cells = _one_coordinate_at_a_time(experiment.cells())
    whole = results.combine([experiment.run(cell, progress=lambda fraction, note="": None) for cell in cells])
    assert (
        whole.sizes.items()
        >= {name: len(getattr(experiment, at)) for name, at in experiment.swept.items()}.items()
    )
    results.check_structure(whole)
    for name, variable in whole.variables.items():
        assert variable.attrs.get("units"), name
        assert variable.attrs.get("long_name"), name
    assert experiment.findings(whole)
    assert experiment.figures(whole)
    assert experiment.tables(whole)


def _one_coordinate_at_a_time(cells):
    """The cells that differ from the first in one coordinate at most: every value of each is among them."""
    first = cells[0].coords
    return [each for each in cells if sum(value != first[name] for name, value in each.coords.items()) <= 1]
