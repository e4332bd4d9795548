"""What import-linter cannot say by itself: a package is entered by its public modules, from outside alone."""

from __future__ import annotations

from collections.abc import Iterator

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output


class PublicDoors(Contract):
    """No module imports another package's private module, nor the package that it lies in itself.

    `a.b._c` belongs to `a.b`: only `a.b` and what lies in it may import it, or anything in it. A module that
    imports its own package, `from a.b import x` in `a.b._c`, waits for itself: a circle that `acyclic_siblings`
    does not see. Imports within functions and for type checkers alone count as well.
    """

    type_name = "public_doors"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Collect the imports that are not allowed, as lines to print."""
        broken = [line for importer in sorted(graph.modules) for line in _broken(graph, importer)]
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print them."""
        for line in check.metadata["broken"]:
            output.print_error(f"- {line}", bold=False)
        output.new_line()


def _broken(graph: ImportGraph, importer: str) -> Iterator[str]:
    for imported in sorted(graph.find_modules_directly_imported_by(importer)):
        owner = _owner(imported)
        if owner is not None and not _lies_in(importer, owner):
            rule = f"is private to {owner}: import what you need from {owner}, which must offer it"
        elif importer != imported and _lies_in(importer, imported):
            rule = "is the package it lies in: import the module that defines what you need"
        else:
            continue
        lines = ", ".join(
            f"l.{detail['line_number']}"
            for detail in graph.get_import_details(importer=importer, imported=imported)
        )
        yield f"{importer} -> {imported} ({lines}): {imported} {rule}"


def _owner(module: str) -> str | None:
    """The package that a private module, or one within a private package, belongs to; None for a public one."""
    parts = module.split(".")
    private = [i for i, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")]
    return ".".join(parts[: private[0]]) if private and private[0] > 0 else None


def _lies_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
