"""Put finished runs into the documentation's gallery: their reports as they came out, and what they cost.

python scripts/gallery.py runs/depth_sweep-<id> runs/chapter-<id>
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from train import results
from train.config import import_type
from train.experiments.chapter import Chapter, claims, part
from train.experiments.chapter.claim import numbers_table

GALLERY = Path(__file__).parents[1] / "docs" / "gallery" / "runs"
_LARGEST = 400_000  # bytes of a picture beside the first; the report itself shows what is larger
_KEPT = ("study", "experiment", "run_id", "command", "device", "started", "wall_seconds", "git_commit")


def put(directory: Path) -> str:
    """Copy a run's page and pictures, and write what the gallery tells of it.

    Args:
        directory: a run's folder, with `result.nc` and `report.html`.

    Returns:
        The study's name.
    """
    result = results.load(directory / "result.nc")
    if result.attrs["smoke"] == "true":
        raise SystemExit(f"{directory} is a smoke run: its numbers mean nothing. Give a whole run.")
    study = result.attrs["study"]
    experiment = import_type(result.attrs["experiment"], directory, trust=False)
    facts: dict[str, Any] = {name: result.attrs[name] for name in _KEPT}
    facts["findings"] = [[getattr(each, "topic", ""), str(each)] for each in experiment.findings(result)]
    facts["figures"] = list(experiment.figures(result))
    if experiment is Chapter:
        facts["claims"] = {name: numbers_table(part(result, name)).to_dict("records") for name in claims()}
    GALLERY.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(directory / "report.html", GALLERY / f"{study}.html")
    for place, name in enumerate(facts["figures"]):
        copy = f"{study}-{name}.svg" if place or experiment is Chapter else f"{study}.svg"
        picture = directory / "figures" / f"{name}.svg"
        if not place or experiment is Chapter or picture.stat().st_size <= _LARGEST:
            shutil.copyfile(picture, GALLERY / copy)
    (GALLERY / f"{study}.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
    return str(study)


def main() -> None:
    """Put every run named on the command line."""
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    for each in sys.argv[1:]:
        print(put(Path(each)))


if __name__ == "__main__":
    main()
