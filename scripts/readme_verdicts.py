"""Put the verdicts of a finished run of the chapter into the README, between its markers.

python scripts/readme_verdicts.py runs/chapter-<id>
"""

import re
import sys
from pathlib import Path

from train import results
from train.experiments.chapter import Chapter

README = Path(__file__).parents[1] / "README.md"
_TABLE = re.compile(r"(<!-- verdicts -->\n).*?(<!-- end of verdicts -->)", re.DOTALL)


def rows(directory: Path) -> str:
    """The table of verdicts of a run, in Markdown."""
    result = results.load(directory / "result.nc")
    if result.attrs["smoke"] == "true":
        raise SystemExit(f"{directory} is a smoke run: its numbers mean nothing. Give a whole run.")
    (table,) = Chapter.tables(result).values()
    lines = [[*table.columns], ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "".join(
        f"| {' | '.join(str(each).replace('|', chr(92) + '|') for each in line)} |\n" for line in lines
    )


def main() -> None:
    """Write the table of the run named on the command line."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    table = rows(Path(sys.argv[1]))
    text, count = _TABLE.subn(
        lambda match: f"{match[1]}\n{table}\n{match[2]}", README.read_text(encoding="utf-8")
    )
    if count != 1:
        raise SystemExit(
            f"{README} must have the markers <!-- verdicts --> and <!-- end of verdicts --> once."
        )
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
