"""One reading of a JAX function: from its jaxpr to a straight line of steps whose slopes are known.

The way of one equation, `z = gelu(W @ x)` say:

1. `lower` traces the function in float64 and walks the equations of its jaxpr (`_walk`); loops and calls are unrolled
   (`_loops`), what does not depend on the input is computed (`_host`).
2. The table of rules (`_rules`) says what a primitive makes of its operands. `dot_general` adds a node to the graph
   (`_graph`), an affine map (`_nodes`) that is not multiplied out yet; the equations of gelu grow ONE formula of that
   node (`_formula`, simplified by the identities of `_rewrites`).
3. What the output needs of the graph is written out (`_emit`): affine maps composed into one operator (`_compose`,
   `_operators`), the formula as a step that knows its slopes (`_leaps`), each with the user's line (`_source`).
4. The slopes of a formula over intervals, or the whole line, are bounded from the formula alone (`_slopes`), by
   enclosures over panels (`_jets`) in interval arithmetic (`_intervals`) from facts on each primitive (`_curves`).

The result, a `Program`, is what `jaxact.lipschitz` bounds. What any other walk over a jaxpr needs has a door of its
own: an equation's place in the user's source (`place`, `called`), the body of a call (`called_body`), and the primitive
itself (`bind_equation`; on the host `compute_equation`, and `move_equation` for
what only moves entries).
"""

from jaxact.trace._expr import Expr, UnsupportedError, evaluate_node, nodes
from jaxact.trace._host import bound as bind_equation
from jaxact.trace._host import computed as compute_equation
from jaxact.trace._host import moved as move_equation
from jaxact.trace._intervals import centered
from jaxact.trace._jets import compile_formula
from jaxact.trace._operators import Dense, Diagonal, Identity, Linear, Operator, matvec
from jaxact.trace._program import (
    Affine,
    Bounds,
    Contraction,
    Elementwise,
    Intervals,
    Program,
    Reach,
    Step,
    StepRecord,
    Values,
    applied,
    evaluate,
)
from jaxact.trace._slopes import LARGEST, SlopeRange, find_jumps, slope_range, value_range
from jaxact.trace._source import Place, called, place
from jaxact.trace._walk import Lowered, called_body, from_function, lower, lower_both
from jaxact.trace._wide import forget, run_again

__all__ = [
    "LARGEST",
    "Affine",
    "Bounds",
    "Contraction",
    "Dense",
    "Diagonal",
    "Elementwise",
    "Expr",
    "Identity",
    "Intervals",
    "Linear",
    "Lowered",
    "Operator",
    "Place",
    "Program",
    "Reach",
    "SlopeRange",
    "Step",
    "StepRecord",
    "UnsupportedError",
    "Values",
    "applied",
    "bind_equation",
    "called",
    "called_body",
    "centered",
    "compile_formula",
    "compute_equation",
    "evaluate",
    "evaluate_node",
    "find_jumps",
    "forget",
    "from_function",
    "lower",
    "lower_both",
    "matvec",
    "move_equation",
    "nodes",
    "place",
    "run_again",
    "slope_range",
    "value_range",
]
