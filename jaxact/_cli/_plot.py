"""A figure of what theory knows of a few activations: curves, correlation maps and phase diagrams."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxact import theme, theory
from jaxact._cli._output import InputError, short
from jaxact.activations import Activation

_SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
_SIZE = 230
_MOST = 6  # activations: more panels are too small
_SUFFIXES = (".png", ".svg", ".html")
_REACH = 4.0
_GRID = (36, 18)  # sigma_w^2, sigma_b^2
_DEEPEST = 100.0  # layers, where the colours end
_FEW, _MOST_ROUNDS = 20, 3  # points that make a line from side to side, and searches for them
_EDGE_LENGTHS = np.geomspace(1e-8, 1e4, 400)


def check(path: Path, activations: Sequence[Activation]) -> None:
    """Refuse at once what could not be drawn after a minute of computing.

    Raises:
        InputError: altair is missing, the file's kind is unknown, its folder does not exist, or there are too many
            activations.
    """
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise InputError(
            f'`--plot` draws with altair and vl-convert, but {error.name} is missing: pip install "jaxact[study]"'
        ) from error
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"`--plot` writes {', '.join(_SUFFIXES)} files, got {str(path)!r}.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"`--plot` needs an existing folder, got {str(path)!r}. Make {path.parent} first.")
    if len(activations) > _MOST:
        raise InputError(
            f"`--plot` draws at most {_MOST} activations, got {len(activations)}. Call it twice."
        )


def draw(path: Path, activations: Sequence[Activation], *, sigma_b: float) -> None:
    """Draw f, f', the correlation map where the network is critical, and the phase diagram.

    Args:
        path: a .png, .svg or .html file.
        activations: at most six.
        sigma_b: bias scale of the critical points at which correlations are shown; where there is none, that
            without bias, and then the gain.

    Raises:
        InputError: the file cannot be written.
    """
    import altair as alt

    names = [activation.name for activation in activations]
    sites = [_site(activation, sigma_b) for activation in activations]
    look = theme.style(names)
    colours = alt.Scale(domain=names, range=list(look.colours))
    dashes = alt.Scale(domain=names, range=[list(each) for each in look.dashes])
    series = {
        "color": alt.Color("activation:N", title=None, scale=colours),
        "strokeDash": alt.StrokeDash("activation:N", title=None, scale=dashes),
    }
    curves, maps = [], []
    for activation, site in zip(activations, sites, strict=True):
        curves += _curves(activation)
        maps += _correlations(activation, site)

    def panel(rows: list[dict[str, Any]], x: str, y: str, title: str, below: str) -> Any:
        lines = alt.Chart(_data(rows)).mark_line(strokeWidth=2.2, clip=True)
        return lines.encode(
            x=alt.X(f"{x}:Q", title=below), y=alt.Y(f"{y}:Q", title=None), **series
        ).properties(title=_heading(alt, title), width=_SIZE, height=_SIZE)

    diagonal = alt.Chart(_data([{"c": end, "image": end} for end in (-1, 1)]))
    diagonal = diagonal.mark_line(stroke=alt.ExprRef("soft"), strokeDash=[3, 3]).encode(x="c:Q", y="image:Q")
    where = [f"{name}: {site.words}" for name, site in zip(names, sites, strict=True)]
    correlation = panel(maps, "c", "image", "", "correlation c of two inputs in one layer")
    first = alt.hconcat(
        panel(curves, "x", "value", "f(x)", "x"),
        panel(curves, "x", "slope", "f'(x)", "x"),
        alt.layer(diagonal, correlation).properties(
            title=_heading(alt, "C(c), the same in the next layer", where)
        ),
        spacing=26,
    )
    second = alt.hconcat(
        *(
            _phase_diagram(alt, activation, sigma_b, is_last=activation is activations[-1])
            for activation in activations
        ),
        spacing=26,
    ).resolve_scale(color="independent")
    chart = alt.vconcat(first, second, spacing=30).resolve_scale(
        color="independent", strokeDash="independent"
    )
    chart = chart.properties(
        title=", ".join(names),
        config=alt.Config(**theme.LIGHT),
    )
    try:
        if path.suffix.lower() == ".html":
            chart.save(str(path), format="html", inline=True)
        else:
            chart.save(str(path), format=path.suffix.lower()[1:], scale_factor=2)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}.") from error


class _Site(NamedTuple):
    """Where correlations are shown."""

    sigma_w: float
    sigma_b: float
    q: float
    words: str


def _site(activation: Activation, sigma_b: float) -> _Site:
    for b in (sigma_b, 0.0):
        try:
            point = theory.critical_point(activation, sigma_b=b)
        except ValueError:
            continue
        # Signals that vanish still have directions: those of small ones.
        sigma_w, q = float(point.sigma_w), float(point.q_star)
        return _Site(sigma_w, b, q or 1e-6, _words("critical", sigma_w, b, q))
    try:
        gain = theory.gain(activation)
    except ValueError:
        return _Site(1.0, 0.0, 1.0, _words("neither critical nor gain", 1.0, 0.0, 1.0))
    return _Site(gain, 0.0, gain**2, _words("gain", gain, 0.0, gain**2))


def _words(kind: str, sigma_w: float, sigma_b: float, q: float) -> str:
    return f"{kind}, {_SIGMA}w = {short(sigma_w, 3)}, {_SIGMA}b = {short(sigma_b, 3)}, q = {short(q, 3)}"


def _curves(activation: Activation) -> list[dict[str, Any]]:
    x = np.linspace(-_REACH, _REACH, 401) + 0.0
    value, slope = activation.value_and_slope(jnp.asarray(x))
    return [
        {"activation": activation.name, "x": a, "value": b, "slope": c}
        for a, b, c in zip(x, np.asarray(value), np.asarray(slope), strict=True)
    ]


def _correlations(activation: Activation, site: _Site) -> list[dict[str, Any]]:
    # Closer together towards 1, where a kink of f makes C steep.
    c = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 61))

    @jax.jit
    def images(c: Array) -> Array:
        return theory.correlation_map(activation, c, q=site.q, sigma_w=site.sigma_w, sigma_b=site.sigma_b)

    with jax.enable_x64(True):
        found = np.asarray(images(jnp.asarray(c)))
    return [{"activation": activation.name, "c": a, "image": b} for a, b in zip(c, found, strict=True)]


def _phase_diagram(alt: Any, activation: Activation, sigma_b: float, *, is_last: bool) -> Any:
    """Depth scale of gradients over both scales, with the edge of chaos."""
    high_b = max(0.3, 2 * sigma_b**2)
    edge_w, edge_b = _edge(activation, high_b)
    is_inside = (edge_b >= -1e-12) & (edge_b <= high_b)
    near = edge_w[is_inside]
    high_w = max(1.5 * near.min(), min(1.15 * near.max(), 3 * near.min())) if near.size else 4.0
    width, height = high_w / _GRID[0], high_b / _GRID[1]
    w, b = np.meshgrid((np.arange(_GRID[0]) + 0.5) * width, (np.arange(_GRID[1]) + 0.5) * height)

    @jax.jit
    def fields(w: Array, b: Array) -> theory.MeanField:
        return theory.mean_field(activation, sigma_w=w, sigma_b=b)

    with jax.enable_x64(True):
        field = jax.tree.map(np.asarray, fields(jnp.asarray(np.sqrt(w)), jnp.asarray(np.sqrt(b))))
    cells = []
    for centre_w, centre_b, chi, scale in zip(
        *(each.ravel() for each in (w, b, field.chi, field.xi_gradient)), strict=True
    ):
        # Each reaches a little under the next, or pale seams show.
        cell = {"w": centre_w - width / 2, "w2": min(centre_w + 0.6 * width, high_w)}
        cell |= {"b": centre_b - height / 2, "b2": min(centre_b + 0.6 * height, high_b)}
        is_bounded = bool(np.isfinite(chi))
        cells.append(cell | {"chi": chi, "depth": min(max(scale, 1.0), _DEEPEST)} if is_bounded else cell)
    bounded = [cell for cell in cells if "chi" in cell]
    unbounded = [cell for cell in cells if "chi" not in cell]
    x = alt.X("w:Q", title=f"{_SIGMA}w²", scale=alt.Scale(domain=[0, high_w], nice=False))
    y = alt.Y("b:Q", title=f"{_SIGMA}b²", scale=alt.Scale(domain=[0, high_b], nice=False))
    legend = alt.Legend(title=["layers over which", "|grad|² changes e-fold"], values=[1, 3, 10, 30, 100])
    colour = alt.Color(
        "depth:Q",
        scale=alt.Scale(type="log", domain=[1, _DEEPEST], scheme="viridis", clamp=True),
        legend=legend if is_last else None,
    )
    tooltip = [alt.Tooltip(f"{name}:Q", format=".3~g") for name in ("chi", "depth")]
    ends = {"x2": "w2", "y2": "b2"}
    layers = [
        alt.Chart(_data(unbounded)).mark_rect(color=alt.ExprRef("blank")).encode(x=x, y=y, **ends),
        alt.Chart(_data(bounded))
        .mark_rect(strokeWidth=0)
        .encode(x=x, y=y, color=colour, tooltip=tooltip, **ends),
    ]
    order = np.nonzero(is_inside)[0]
    piece = np.cumsum(np.diff(order, prepend=-1) > 1)  # the edge may leave the picture and come back
    edge = [
        {"w": edge_w[i], "b": max(edge_b[i], 0.0), "order": i, "piece": str(k)}
        for i, k in zip(order, piece, strict=True)
    ]
    shown = alt.Chart(_data(edge))
    place = {"x": x, "y": y, "order": "order:Q", "detail": "piece:N"}
    if edge and np.ptp(near) + np.ptp(edge_b[is_inside]) < 1e-6:  # all lengths at one point, as of relu
        layers.append(shown.mark_point(color="#D55E00", filled=True, size=110, opacity=1).encode(x=x, y=y))
    elif edge:
        layers.append(shown.mark_line(color="white", strokeWidth=4.5, clip=True).encode(**place))
        layers.append(shown.mark_line(color="#D55E00", strokeWidth=2.2, clip=True).encode(**place))
    words = ["edge of chaos: orange" if edge else "no edge of chaos here"]
    words[0] += "; signals grow for ever: grey" if unbounded else ""
    return alt.layer(*layers).properties(
        title=_heading(alt, activation.name, words), width=_SIZE, height=_SIZE
    )


def _edge(activation: Activation, high: float) -> tuple[np.ndarray, np.ndarray]:
    """sigma_w^2 and sigma_b^2 that make each of many lengths a critical fixed point.

    Between neighbours sigma_b^2 moves little where it lies in [0, high]; the edge may enter there more than once.
    """

    @jax.jit
    def moments(q: Array) -> tuple[Array, Array]:
        found = theory.moments(activation, variance=q)
        return found.second_moment, found.slope_second_moment

    def scales(q: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            value, slope = (np.asarray(each) for each in moments(jnp.asarray(q)))
        with np.errstate(divide="ignore", invalid="ignore"):
            weight, bias = 1 / slope, q - value / slope
        return np.stack([q, weight, np.where(np.abs(bias) < 1e-9 * q, 0, bias)])

    found = scales(_EDGE_LENGTHS)
    for _ in range(_MOST_ROUNDS):
        q, _, bias = found
        low, above = np.minimum(bias[1:], bias[:-1]), np.maximum(bias[1:], bias[:-1])
        step = np.abs(np.diff(np.clip(bias, -high, 2 * high)))
        (coarse,) = np.nonzero((low <= high) & (above >= 0) & (step > high / _FEW))  # NaN is neither
        if not coarse.size:
            break
        share = max(_EDGE_LENGTHS.size // coarse.size, 1)
        between = np.geomspace(q[coarse], q[coarse + 1], share + 2)[1:-1].T.reshape(-1)
        new = scales(np.resize(between, _EDGE_LENGTHS.size))  # one shape: one compiled program
        found = np.concatenate([found, new], 1)
        found = found[:, np.unique(found[0], return_index=True)[1]]
    return found[1], found[2]


def _data(rows: list[dict[str, Any]]) -> Any:
    """Rows for altair, numbers to six digits, without those that hold one that is not finite."""
    import altair as alt

    plain = [
        {name: each if isinstance(each, str) else float(f"{float(each):.6g}") for name, each in row.items()}
        for row in rows
    ]
    finite = [
        row for row in plain if all(isinstance(each, str) or math.isfinite(each) for each in row.values())
    ]
    return alt.InlineData(values=json.loads(json.dumps(finite)))


def _heading(alt: Any, text: str, below: Sequence[str] = ()) -> Any:
    """The title of a panel, smaller than the figure's."""
    return alt.TitleParams(text=text, subtitle=list(below), fontSize=13, subtitleFontSize=11, offset=8)
