"""Charts drawn by processes of their own, which know nothing but the charts: the converter keeps a thread to itself."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

_SCALE = 2.0  # pixels of a PNG for each pixel of the chart


class Drawing(NamedTuple):
    """A chart as files: text of an SVG, bytes of a PNG."""

    svg: bytes
    png: bytes


def drawn(specs: Mapping[str, Any], *, num_processes: int) -> Iterator[tuple[str, Drawing]]:
    """Draw Vega-Lite charts by name, side by side.

    Raises:
        RuntimeError: a chart could not be drawn; says why.
    """
    texts = {name: json.dumps(spec) for name, spec in specs.items()}
    names = sorted(texts, key=lambda name: -len(texts[name]))  # the longest, spread over all, first
    shares = [names[start::num_processes] for start in range(min(num_processes, len(names)))]
    with ThreadPoolExecutor(max(len(shares), 1)) as pool:
        found = pool.map(lambda share: _by_a_process([texts[name] for name in share]), shares)
        for share, drawings in zip(shares, found, strict=True):
            yield from zip(share, drawings, strict=True)


def _by_a_process(charts: list[str]) -> list[Drawing]:
    done = subprocess.run(
        [sys.executable, __file__], input="\n".join(charts).encode(), capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"A chart could not be drawn: {done.stderr.decode(errors='replace').strip()}")
    return [Drawing(*map(base64.b64decode, json.loads(line))) for line in done.stdout.splitlines()]


def main() -> None:
    """Read charts, a line each; write what becomes of them, a line each."""
    import vl_convert

    for line in sys.stdin:
        svg = vl_convert.vegalite_to_svg(json.loads(line), allowed_base_urls=[])
        png = vl_convert.svg_to_png(svg, scale=_SCALE)
        sys.stdout.write(json.dumps([base64.b64encode(each).decode() for each in (svg.encode(), png)]) + "\n")


if __name__ == "__main__":
    main()
