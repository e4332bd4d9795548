"""What the cells of a run must agree on, so that they can be joined; checked as each comes, before it is stored."""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from train import results
from train.experiment import Cell
from train.study import label


class _Form(NamedTuple):
    """How a variable is stored, and which cell gave it first."""

    dims: tuple[str, ...]
    is_text: bool
    units: Any
    cell: str


class Agreement:
    """The cells so far. One that contradicts them, or its own coordinates, would end the run when all are joined."""

    def __init__(self) -> None:
        self._forms: dict[str, _Form] = {}
        self._shared: dict[tuple[Any, ...], xr.Dataset] = {}
        self._givers: dict[frozenset[str], str] = {}  # cells by what they give, one for each kind
        self._large: dict[str, str] = {}  # which cell gives integers that floating numbers round

    def admit(self, cell: Cell, dataset: xr.Dataset) -> None:
        """Take a cell's Dataset among those that agree.

        It must keep the schema; carry the labels of `cell.coords` and no others; give every variable the dimensions,
        the units and the kind (text or numbers) that it has elsewhere; where it gives a place that another cell gives
        too, the same values; and no integer that would be rounded because another cell does not give one.

        Raises:
            TypeError: if it is no Dataset.
            ValueError: listing every failure, with the cell's name.
        """
        try:
            results.check_structure(dataset)
        except (TypeError, ValueError) as error:
            raise type(error)(f"cell {cell.name} cannot be stored: {error}") from None
        labels = {dim: label(value) for dim, value in cell.coords.items()}
        forms = {str(name): _form(cell, variable) for name, variable in dataset.variables.items()}
        failures = _label_failures(labels, dataset)
        failures += [fault for name, form in forms.items() if (fault := self._form_failure(name, form))]
        givers = self._givers | {frozenset(forms): cell.name}
        large = self._large | dict.fromkeys(_large_integers(labels, dataset), cell.name)
        failures += _gap_failures(large, givers)
        shared = {} if failures else self._joined(labels, dataset, failures)
        if failures:
            listed = "\n".join(f"  - {failure}" for failure in failures)
            raise ValueError(f"cell {cell.name} cannot be stored: its data do not fit in.\n{listed}")
        self._forms = forms | self._forms
        self._shared |= shared
        self._givers, self._large = givers, large

    def _form_failure(self, name: str, form: _Form) -> str:
        first = self._forms.get(name, form)
        if form[:-1] == first[:-1]:
            return ""
        return f"`{name}` is {_said(form)} here, and {_said(first)} in {first.cell}"

    def _joined(
        self, labels: dict[str, Any], dataset: xr.Dataset, failures: list[str]
    ) -> dict[tuple[Any, ...], xr.Dataset]:
        """What other cells give as well, each joined with what they gave."""
        joined = {}
        for name, variable in dataset.variables.items():
            own_labels = [(dim, labels[str(dim)]) for dim in variable.dims if dim in labels]
            if name in dataset.dims or len(own_labels) == len(labels):
                continue  # at a place that no other cell has
            key, own = (name, *own_labels), dataset[[name]].reset_coords()
            before = self._shared.get(key, own)
            try:
                joined[key] = before if own.equals(before) else results.combine([before, own])
            except ValueError as error:
                failures.append(str(error).rstrip("."))
        return joined


def _large_integers(labels: dict[str, Any], dataset: xr.Dataset) -> list[str]:
    """The variables at places of a cell's own with integers that floating numbers, which hold gaps, would round."""
    # Of variables, as to make a DataArray of each takes longer than all the rest.
    own = {name: each for name, each in dataset.variables.items() if {*labels} & {*each.dims}}
    return [
        str(name)
        for name, each in own.items()
        if each.dtype.kind in "iu" and name not in dataset.dims and results.beyond_floats(each.to_numpy())
    ]


def _gap_failures(large: dict[str, str], givers: dict[frozenset[str], str]) -> list[str]:
    return [
        f"`{name}` holds integers beyond 2^53 in {cell}, which the gap that {other} leaves would have rounded. "
        "Give it in every cell, or as text"
        for name, cell in large.items()
        for names, other in givers.items()
        if name not in names
    ]


def _form(cell: Cell, variable: xr.Variable) -> _Form:
    is_text = variable.dtype.kind in "UTO"
    return _Form(tuple(map(str, variable.dims)), is_text, variable.attrs.get("units"), cell.name)


def _said(form: _Form) -> str:
    kind = "text" if form.is_text else f"numbers in units {form.units!r}"
    return f"{kind} along ({', '.join(form.dims)})"


def _label_failures(labels: dict[str, Any], dataset: xr.Dataset) -> list[str]:
    failures = []
    for dim, wanted in labels.items():
        found = dataset.indexes[dim].to_numpy() if dim in dataset.dims else np.array([])
        if not (len(found) == 1 and _is_same(found[0], wanted)):
            failures.append(
                f"`{dim}` must have the one label {wanted!r} of this cell, and has {found.tolist()}"
            )
    return failures


def _is_same(found: Any, wanted: Any) -> bool:
    """Whether a label is the one that is wanted, in its own precision."""
    if isinstance(wanted, str) or isinstance(found, str):
        return found == wanted
    return bool(np.asarray(wanted).astype(np.asarray(found).dtype) == found)
