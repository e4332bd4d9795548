"""Formulas as MathML, which browsers draw themselves: no script, no font and no network."""

from docutils import nodes
from latex2mathml.converter import convert


def mathml(node, display):
    """The formula, its primes as operators: an identifier's would be raised twice."""
    return convert(node.astext(), display=display).replace("<mi>&#x02032;</mi>", "<mo>&#x02032;</mo>")


def inline(writer, node):
    """A formula within a line."""
    writer.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def display(writer, node):
    """A formula of its own."""
    writer.body.append(f'<div class="math">{mathml(node, "block")}</div>')
    raise nodes.SkipNode


def setup(app):
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
