"""What an experiment is: independent cells, what one of them measures, and how the whole is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    import altair
    import pandas
    import xarray as xr


class Finding(str):
    """A sentence about a result that knows what it is about; everywhere else it is plain text.

    The report groups findings by topic. What string methods return is a `str` without one.

    Attributes:
        topic: a few words, the same for all findings that belong together; "" where there is none.

    >>> print(Finding("Plain networks train to depth 16.", topic="Accuracy"))
    Plain networks train to depth 16.
    """

    topic: str

    def __new__(cls, sentence: str, topic: str = "") -> Self:
        """Text with its topic beside it."""
        finding = super().__new__(cls, sentence)
        finding.topic = topic
        return finding

    @classmethod
    def by_topic(cls, sentences: Mapping[str, Iterable[str]]) -> list[Self]:
        """Sentences with their topics, in order; empty ones are left out."""
        return [cls(each, topic) for topic, several in sentences.items() for each in several if each]


class Link(str):
    """Text in a table that leads to a section of the page; everywhere else it is plain text.

    Attributes:
        key: of the section.
    """

    key: str

    def __new__(cls, text: str, key: str) -> Self:
        """Text with the section it leads to."""
        link = super().__new__(cls, text)
        link.key = key
        return link


class Section(NamedTuple):
    """A part of a report with words, a table and figures of its own.

    Attributes:
        key: a file name's letters; the figures whose names begin with it and a "-" stand in this section.
        title: its heading.
        badge: its verdict in a word or two, beside the heading.
        before: text by what it is about, before the numbers.
        table: the numbers.
        after: text by what it is about, after numbers and figures.
    """

    key: str
    title: str
    badge: str
    before: Mapping[str, str]
    table: pandas.DataFrame
    after: Mapping[str, str]


class Cell(NamedTuple):
    """One independent piece of a study: the smallest thing that is run, stored and skipped as a whole.

    Attributes:
        name: unique within the experiment and readable, for example "pre_activation-bn/tanh/depth=16".
        coords: the coordinates this cell fills in the combined result, by dimension: the objects themselves, an
            activation, a number or text; hashable. They become names when the result is labelled.
    """

    name: str
    coords: Mapping[str, Any]


class Progress(Protocol):
    """How a running cell says how far it is."""

    def __call__(self, fraction: float, note: str = "") -> None:
        """Report that `fraction` in [0, 1] of the cell is done; `note` says what it is doing.

        Call it between compiled chunks, several times a second at most: it is also where Ctrl-C acts.
        """


@runtime_checkable
class Experiment(Protocol):
    """A study that configures itself: a frozen dataclass whose fields are its settings.

    An experiment says what its cells are and what one of them measures. It opens no file and prints nothing:
    order, progress, storage, resuming, figures and the report are the same for every experiment and belong to
    `train.runner`. One whose report is to be read like a chapter has a static method `sections(result)` as well, which
    gives its `Section`s; the first of its tables then opens the page in place of the first figure.
    """

    def smoke(self) -> Self:
        """Return the same study, small enough to run in seconds on two cores."""

    def cells(self) -> Sequence[Cell]:
        """Return the cells in the order in which they run and in which the result lists its coordinates."""

    def run(self, cell: Cell, *, progress: Progress) -> xr.Dataset:
        """Measure one cell; every dimension named and labelled, every variable with units and long_name."""

    @staticmethod
    def figures(result: xr.Dataset) -> Mapping[str, altair.Chart | altair.FacetChart]:
        """Draw the figures, by file name, from a stored result alone; the first is the answer to the study."""

    @staticmethod
    def findings(result: xr.Dataset) -> Sequence[str]:
        """Say what the result shows, the verdict first: sentences with numbers, each a `Finding` if it has a topic."""

    @staticmethod
    def tables(result: xr.Dataset) -> Mapping[str, pandas.DataFrame]:
        """Return the tables of the report, by title."""
