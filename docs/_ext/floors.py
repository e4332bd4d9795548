"""The picture of the floors: packages as boxes on the floors of the import contract, imports as lines between them."""

import ast
import re
import tomllib
from html import escape

WIDTH, HEIGHT, BOX, GAP = 760, 96, 110, 50


def picture(root):
    """An SVG, made from the layers in pyproject.toml and the imports in the code."""
    floors = [floor for floor in _floors(root) if floor]
    places = {}
    for row, floor in enumerate(floors):
        left = (WIDTH - len(floor) * (BOX + GAP) + GAP) / 2
        places |= {name: (left + k * (BOX + GAP), 10 + row * HEIGHT) for k, name in enumerate(floor)}
    lines = [
        _line(places[user], places[used])
        for user in places
        for used in sorted(_imports(root, user, places))
        if places[user][1] != places[used][1]
    ]
    boxes = [_box(name, *place, _count(root, name)) for name, place in places.items()]
    title = "<title>Packages by floor, and which imports which: imports go downward only</title>"
    size = f'viewBox="0 0 {WIDTH} {len(floors) * HEIGHT}" width="100%" role="img" class="floors"'
    return f"<svg {size}>{title}{''.join(lines)}{''.join(boxes)}</svg>"


def _floors(root):
    settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    for contract in settings["contracts"]:
        if contract["type"] == "layers":
            return [[name.strip() for name in re.split("[|:]", layer)] for layer in contract["layers"]]
    raise ValueError("pyproject.toml has no contract of layers")


def _files(root, name):
    path = root.joinpath(*name.split("."))
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def _count(root, name):
    return sum(len(each.read_text("utf-8").splitlines()) for each in _files(root, name))


def _imports(root, user, names):
    found = set()
    for path in _files(root, user):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {f"{node.module}.{each.name}" for each in node.names}
            elif isinstance(node, ast.Import):
                found |= {each.name for each in node.names}
    return {
        name for name in names if name != user and any(f"{each}.".startswith(f"{name}.") for each in found)
    }


def _line(user, used):
    x, y = user[0] + BOX / 2, user[1] + 44
    to_x, to_y = used[0] + BOX / 2, used[1]
    return f'<path class="import" d="M{x} {y}C{x} {y + 30} {to_x} {to_y - 30} {to_x} {to_y}"/>'


def _box(name, x, y, count):
    short = name.removeprefix("jaxact.")
    return (
        f'<g><title>{escape(name)}: {count:,} lines</title><rect x="{x}" y="{y}" width="{BOX}" height="44" rx="6"/>'
        f'<text x="{x + BOX / 2}" y="{y + 20}">{escape(short)}</text>'
        f'<text class="count" x="{x + BOX / 2}" y="{y + 36}">{count:,} lines</text></g>'
    )
