"""Every study in configs/ runs by its smoke test, and what it stores is described, drawn and put in words."""

from pathlib import Path

import pytest

from train import config, results

OTHERS = sorted(set((Path(__file__).parents[2] / "configs").glob("*.py")))


@pytest.mark.parametrize(
    "path",
    [path for path in OTHERS if path.stem not in ("depth_sweep", "chapter")],
    ids=lambda path: path.stem,
)
def test_runs_by_its_smoke_and_reports(path):  # the other two: in files of their own, which share the runs
    experiment = config.load(path).smoke()
    whole = results.combine(
        [experiment.run(cell, progress=lambda fraction, note="": None) for cell in experiment.cells()]
    )
    results.check_structure(whole)
    for name, variable in whole.variables.items():
        assert variable.attrs.get("units"), name
        assert variable.attrs.get("long_name"), name
    assert experiment.findings(whole)
    assert experiment.figures(whole)
    assert experiment.tables(whole)
