"""The base of most studies: say what is swept, measured and expected; cells, labels, figures and words follow."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pandas as pd
import xarray as xr

from train import declarations, fields, words
from train.config import ConfigError, hint
from train.experiment import Cell, Progress


class Coordinate(NamedTuple):
    """A dimension of a result.

    Attributes:
        long_name: what it counts.
        units: "1" for pure numbers and text.
        first: the number of the first place, where nothing else labels them.
        labels: the places by name, where they are always the same.
    """

    long_name: str
    units: str = "1"
    first: int = 1
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Variable:
    """What a study measures, declared once.

    Attributes:
        long_name: what it is; a template that the study's fields fill: "steps to {threshold:.0%} train accuracy".
        dims: its dimensions after those of the cell, members first.
        units: "1" for pure numbers.
        theory: the variable of the same dimensions, or fewer, that theory has for it.
        fields: those of the study that a reader of the number needs; kept as attributes.
        of_cell: whether the cell's coordinates come before `dims`; otherwise `dims` is all, and every cell that has
            these labels must give the same numbers.
    """

    long_name: str
    dims: tuple[str, ...] = ()
    units: str = "1"
    theory: str | None = None
    fields: tuple[str, ...] = ()
    of_cell: bool = True


COORDINATES = {
    "block": Coordinate("block"),
    "activation": Coordinate("activation"),
    "depth": Coordinate("depth", "layers"),
    "learning_rate": Coordinate("learning rate"),
    "seed": Coordinate("seed"),
    "phase": Coordinate("phase of training", labels=("initial", "trained")),
    "step": Coordinate("optimiser step", "steps"),
    "layer": Coordinate("layer", "layers"),
    "example": Coordinate("held-out example", first=0),
    "mode": Coordinate("singular value, from the largest"),
}
_MEMBERS = ("learning_rate", "seed")
_SECONDS = {
    "compile_seconds": Variable("time to trace and compile in this cell", units="s"),
    "run_seconds": Variable("time to train and measure, without compiling", units="s"),
}
_SMALL = {"width": 16, "num_steps": 20, "measure_every": 5, "num_probes": 4}  # of a smoke run, at most


class Study:
    """A frozen dataclass that derives from this is an experiment once it has `measure`.

    A subclass declares `swept` and `variables`, and overrides `smoke`, `figures`, `findings` or `tables` where it can
    say it better. Fields are checked by their names (`train.fields`); rules of its own belong into `__post_init__`.

    Attributes:
        swept: the field that lists the values of each coordinate of a cell; cells are their product, the last fastest.
        within: the same for coordinates inside a cell, such as seeds.
        variables: everything that `measure` returns.
        coordinates: dimensions beyond those of `COORDINATES`.
        called: how a reader calls the values of a coordinate: a function of the value, by dimension.
    """

    swept: ClassVar[Mapping[str, str]]
    within: ClassVar[Mapping[str, str]] = {"learning_rate": "learning_rates", "seed": "seeds"}
    variables: ClassVar[Mapping[str, Variable]]
    coordinates: ClassVar[Mapping[str, Coordinate]] = {}
    called: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        fields.check(self)

    def measure(self, cell: Cell, progress: Progress) -> Mapping[str, Any]:
        """Measure one cell.

        Args:
            cell: its `coords` hold the objects themselves.
            progress: to be called between compiled chunks.

        Returns:
            Values by the names of `variables`, of any shape that reshapes to their dimensions; labels by dimension
            where neither a field lists nor a number counts them, None for a dimension that is another cell's to give;
            and, if known, "compile_seconds".
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define `measure(self, cell, progress)`, which returns arrays by the names in "
            "`variables`."
        )

    def smoke(self) -> Self:
        """At most two values of everything swept, one learning rate and seed, small counts."""
        known: dict[str, Any] = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}  # type: ignore[arg-type]
        small = {name: min(known[name], most) for name, most in _SMALL.items() if name in known}
        small |= {field: _smallest(known[field], 2, dim) for dim, field in self.swept.items()}
        small |= {field: known[field][:1] for field in self.within.values() if field in known}
        return self.shrunk(**small)

    def shrunk(self, **small: Any) -> Self:
        """The same study with smaller fields; what no longer fits into `num_steps` shrinks with it."""
        known = vars(self) | small
        if "num_steps" in known and "measure_every" in known:
            small["num_steps"] = max(known["num_steps"] // known["measure_every"], 1) * known["measure_every"]
        if "num_steps" in known and "optimizer" in known:
            warmup_steps = min(
                known["optimizer"].warmup_steps, small.get("num_steps", known["num_steps"]) // 2
            )
            small["optimizer"] = replace(known["optimizer"], warmup_steps=warmup_steps)
        return replace(self, **small)  # type: ignore[type-var]

    def cells(self) -> Sequence[Cell]:
        """One cell for every combination of the swept values; the last coordinate varies fastest.

        Raises:
            ConfigError: a declaration that cannot be run, before anything is written.
        """
        if faults := declarations.faults(self, {**COORDINATES, **self.coordinates}) or self.missing():
            raise ConfigError(f"{type(self).__name__} cannot be run: {' '.join(faults)}")
        values = [getattr(self, field) for field in self.swept.values()]
        rows = (dict(zip(self.swept, row, strict=True)) for row in itertools.product(*values))
        return [Cell("/".join(_part(*item) for item in row.items()) or "all", row) for row in rows]

    def missing(self) -> Sequence[str]:
        """The fields that the study needs beyond what it declares and lacks, a sentence each, with the remedy."""
        return ()

    def num_members(self) -> int:
        """How many networks a cell has side by side, every seed at every learning rate; 0 if no field says so."""
        fields = [self.within[dim] for dim in _MEMBERS if hasattr(self, self.within.get(dim, ""))]
        return math.prod(len(getattr(self, field)) for field in fields) if fields else 0

    def run(self, cell: Cell, *, progress: Progress) -> xr.Dataset:
        """Measure one cell and label what comes back."""
        started = time.perf_counter()
        measured = {"compile_seconds": 0.0, **self.measure(cell, progress)}
        seconds = time.perf_counter() - started
        return self.labelled(cell, {**measured, "run_seconds": seconds - float(measured["compile_seconds"])})

    def labelled(self, cell: Cell, measured: Mapping[str, Any]) -> xr.Dataset:
        """The Dataset of a cell, from what `measure` returned."""
        declared = {**self.variables, **_SECONDS}
        _check_known(measured, declared)
        dims = {name: (*(self.swept if each.of_cell else ()), *each.dims) for name, each in declared.items()}
        coords = self._labels(cell, measured, dims)
        variables = {}
        for name, variable in declared.items():
            if not set(dims[name]) <= set(coords):
                continue  # another cell's to give
            values = _shaped(name, measured, {dim: len(coords[dim]) for dim in dims[name]})
            variables[name] = (dims[name], values, self._attributes(variable))
        described = {**COORDINATES, **self.coordinates}
        said = {dim: {"units": described[dim].units, "long_name": described[dim].long_name} for dim in coords}
        return xr.Dataset(variables, {dim: (dim, labels, said[dim]) for dim, labels in coords.items()})

    @classmethod
    def figures(cls, result: xr.Dataset) -> Mapping[str, Any]:
        """A figure for every variable: lines along an axis of numbers, theory beside them where declared, else bars."""
        charts = {name: cls.figure(result, name) for name in cls._measured(result) if result[name].dims}
        return {name: chart for name, chart in charts.items() if chart is not None}

    @classmethod
    def figure(cls, result: xr.Dataset, name: str, **said: Any) -> Any:
        """Draw one variable along its last axis of numbers, told apart by what is swept.

        Args:
            result: a result of this study.
            name: of the variable.
            **said: what `train.figures.measured` is told besides or instead.

        Returns:
            A chart, or None where there is no number to draw.
        """
        from train import figures as draw

        variable, theory = result[name], cls.variables[name].theory
        axes = _axes(variable, cls.within)
        panels = [str(dim) for dim in variable.dims if dim in cls.swept and dim not in axes]
        over = [str(dim) for dim in variable.dims if dim in (*cls.within, "example")]
        kinds = [str(dim) for dim in variable.dims if dim not in (*axes, *panels, *over)]
        places = axes or panels or kinds
        if not places:
            return None
        is_line = bool(axes)
        x = places.pop()  # out of one of the three lists
        lines = (panels or kinds)[-1:] if is_line else panels[-1:]
        sample = " and ".join(words.count(result.sizes[dim], dim.replace("_", " ")) for dim in over)
        band = [f"Median over {sample}, band from lowest to highest"] if over else []
        told: dict[str, Any] = {
            "x": x,
            "mark": "lines" if is_line else "bars",
            "series": next(iter(lines), None),
            "column": panels[0] if len(panels) > 1 else None,
            "choices": {each: "last" for each in (*axes, *panels[1:-1], *kinds) if each not in lines},
            "over": over,
            "beside": theory if is_line else None,
            "words": cls.called,
            "title": words.capital(variable.attrs["long_name"]),
            "subtitle": "; ".join([*band, "lines: theory"] if theory else band),
            "caption": "Points on their line agree with theory." if theory else "",
        }
        return draw.measured(result, name, **told | said)

    @staticmethod
    def drawn(result: xr.Dataset, declared: Mapping[str, Mapping[str, Any]], **told: Any) -> dict[str, Any]:
        """Declared figures by name; one that has no number to show is left out.

        Args:
            result: what is drawn, unless a declaration has a `result` of its own.
            declared: what `train.figures.measured` is told, by figure.
            **told: what it is told of all figures that do not say otherwise.
        """
        from train import figures as draw

        charts = {
            name: draw.measured(**{"result": result, **told, **said}) for name, said in declared.items()
        }
        return {name: chart for name, chart in charts.items() if chart is not None}

    @classmethod
    def findings(cls, result: xr.Dataset) -> Sequence[str]:
        """How far each variable is from the theory declared beside it; of the others where they are least and most.

        Numbers along "step" are those of the last step, and each "phase" is told apart.
        """
        said = [
            _finding(result[name], result.get(cls.variables[name].theory), cls.swept)
            for name in cls._measured(result)
        ]
        return [sentence for sentence in said if sentence] or [
            "Nothing to conclude: the result holds no number."
        ]

    @classmethod
    def tables(cls, result: xr.Dataset) -> Mapping[str, pd.DataFrame]:
        """The mean of every variable in every cell: a column a phase, and of what has steps the last."""
        means = {
            f"{name}, {phase}" if phase else name: part.mean([d for d in part.dims if d not in cls.swept])
            for name in cls._measured(result)
            if set(cls.swept) <= set(result[name].dims)
            for phase, part in _phases(_at_the_end(result[name]))
        }
        rows = xr.Dataset(means) if cls.swept else xr.Dataset(means).expand_dims("cell")
        frame = rows.to_dataframe().dropna(how="all").reset_index(drop=not cls.swept)
        frame.attrs["caption"] = (
            "Means over everything within a cell, at the last step where there are steps."
        )
        return {"Every cell": frame}

    @classmethod
    def _measured(cls, result: xr.Dataset) -> list[str]:
        """The variables of numbers that are no theory of another."""
        theories = {each.theory for each in cls.variables.values()}
        kinds = {name: result[name].dtype.kind for name in cls.variables if name in result}
        return [name for name, kind in kinds.items() if kind in "iuf" and name not in theories]

    def _labels(
        self, cell: Cell, measured: Mapping[str, Any], dims: Mapping[str, tuple[str, ...]]
    ) -> dict[str, Any]:
        described = {**COORDINATES, **self.coordinates}
        coords: dict[str, Any] = {dim: [label(value)] for dim, value in cell.coords.items()}
        for name, own in dims.items():
            for axis, dim in enumerate(own):
                if dim in coords:
                    continue
                if dim in measured:
                    given = measured[dim]
                    coords[dim] = (
                        list(given) if isinstance(given, tuple) else given
                    )  # a tuple means more to xarray
                elif dim in self.within:
                    coords[dim] = [label(value) for value in getattr(self, self.within[dim])]
                elif labels := described[dim].labels:
                    coords[dim] = list(labels)
                else:  # counted along the last axes of what was measured
                    shape, place = np.shape(_given(name, measured)), axis - len(own)
                    size = shape[place] if len(shape) >= -place else 1
                    coords[dim] = np.arange(size) + described[dim].first
        return {dim: labels for dim, labels in coords.items() if labels is not None}

    def _attributes(self, variable: Variable) -> dict[str, Any]:
        said = {"units": variable.units, "long_name": variable.long_name.format_map(vars(self))}
        return said | {name: getattr(self, name) for name in variable.fields}


def label(value: Any) -> Any:
    """The name of a value in a result: numbers and text as they are, other objects by their `name` or as text."""
    if isinstance(value, bool | int | float | str | np.generic):
        return value
    return str(getattr(value, "name", value))


def _given(name: str, measured: Mapping[str, Any]) -> Any:
    """What was measured under a name."""
    if name not in measured:
        raise ValueError(
            f"`measure` must return what `variables` declares, and `{name}` is not there. "
            f"Return it, or declare it no more.{hint(name, measured)}"
        )
    return measured[name]


def _check_known(measured: Mapping[str, Any], declared: Mapping[str, Variable]) -> None:
    """Refuse what was measured and is declared nowhere, which would be lost."""
    known = {*declared, *(dim for each in declared.values() for dim in each.dims)}
    for name in measured:
        if name not in known:
            raise ValueError(
                f"`measure` returned {name!r}, which neither `variables` nor their dimensions declare. Declare it, or "
                f"leave it out.{hint(name, known)}"
            )


def _shaped(name: str, measured: Mapping[str, Any], sizes: Mapping[str, int]) -> np.ndarray:
    """What was measured under a name, in the shape of its dimensions."""
    values = np.asarray(_given(name, measured))
    if values.size != math.prod(sizes.values()):
        said = ", ".join(f"{dim}: {size}" for dim, size in sizes.items()) or "one number"
        raise ValueError(
            f"`{name}` must hold a value for each place of its dimensions ({said}), and `measure` gave the shape "
            f"{values.shape}. Mend either its `dims` or what is returned."
        )
    return values.reshape([*sizes.values()])


def _axes(variable: xr.DataArray, within: Mapping[str, str]) -> list[str]:
    """The dimensions of numbers that a variable can be drawn along; samples, such as seeds and examples, are none."""
    sampled = (*within, "example")
    return [str(dim) for dim in variable.dims if dim not in sampled and variable[dim].dtype.kind in "iuf"]


def _at_the_end(variable: xr.DataArray) -> xr.DataArray:
    """The numbers of the last step, where there are steps: a mean over training is of nothing that trains."""
    if "step" not in variable.dims:
        return variable
    return variable.isel(step=int(np.argmax(variable["step"].to_numpy())), drop=True)


def _phases(variable: xr.DataArray) -> list[tuple[str, xr.DataArray]]:
    """The numbers of every phase of training with its name; all of them, unnamed, where there are no phases."""
    if "phase" not in variable.dims:
        return [("", variable)]
    return [(str(phase), variable.sel(phase=phase, drop=True)) for phase in variable["phase"].to_numpy()]


def _finding(variable: xr.DataArray, theory: xr.DataArray | None, swept: Mapping[str, str]) -> str:
    subject = words.capital(variable.attrs["long_name"])
    if theory is not None and bool(np.isfinite(variable - theory).any()):
        gap = abs(variable - theory)
        parts = [(phase, _gap(part)) for phase, part in _phases(gap.where(np.isfinite(gap)))]
        theory = theory.where(np.isfinite(theory))
        low, high = float(theory.min()), float(theory.max())
        end = f"; predictions go from {low:.2g} to {high:.2g}"
    else:
        if "step" in variable.dims:
            subject += f" at the last step, {variable['step'].to_numpy().max():g}"
        parts = [(phase, _range(part, swept)) for phase, part in _phases(_at_the_end(variable))]
        end = ""
    said = "; ".join(f"{phase}, {text}" if phase else text for phase, text in parts if text)
    return f"{subject}: {said}{end}." if said else ""


def _range(variable: xr.DataArray, swept: Mapping[str, str]) -> str:
    """From the least mean of a cell to the greatest; of numbers that belong to no cell, from the least."""
    if not bool(np.isfinite(variable).any()):
        return ""
    own = [dim for dim in variable.dims if dim in swept]
    if not own:
        return words.extent(variable.to_numpy()[np.isfinite(variable)], ".3g")
    cells = variable.mean([dim for dim in variable.dims if dim not in own]).stack(cell=own).dropna("cell")
    names = [" ".join(map(str, place)) for place in cells["cell"].to_numpy()]
    return words.extremes(names, cells.to_numpy(), lambda value: f"{value:.3g}")


def _gap(gap: xr.DataArray) -> str:
    if not bool(gap.notnull().any()):
        return ""
    median, most = float(gap.median()), float(gap.max())
    return f"measured and predicted numbers differ by {median:.2g} in the median and by {most:.2g} at most"


def _part(dim: str, value: Any) -> str:
    said = label(value)
    if isinstance(said, str):
        return said
    if isinstance(said, float) and float(f"{said:g}") == said:
        return f"{dim}={said:g}"
    return f"{dim}={said}"


def _smallest(values: Sequence[Any], most: int, dim: str) -> tuple[Any, ...]:
    """The first values; depths no larger than 8."""
    capped = [min(value, 8) if dim == "depth" else value for value in values]
    return tuple(dict.fromkeys(capped))[:most]
