"""What ails a model: every product of any JAX function measured, with theory's prediction beside it, and its faults.

The way of a diagnosis: `_arguments` traces the model, `_reading` walks its jaxpr once, by the rules of `_rules` and
`_products` on the statistics of `_graph`; `_measure` makes the one program that measures all rows, by the taps of
`_taps`; `_predict` fills in the graph from the measured input. `_skeleton` says which product feeds which; from that
and the numbers `_findings` draws faults of range, of single layers and of depth, each with its remedy.

The way of a cure, `initialize`: `_entries` says which entries of the parameters each product is linear in, `_branches`
what second moment it is to have; `_draws` gives them fresh numbers; `_solve` finds their scales on the graph, or
`_rescale` by measuring; `_notes` says what no scale mends.
"""

from jaxact.diagnosis._diagnose import diagnose, watch
from jaxact.diagnosis._diagnosis import Diagnosis
from jaxact.diagnosis._finding import Finding
from jaxact.diagnosis._findings import KINDS
from jaxact.diagnosis._initialization import Change, Initialization
from jaxact.diagnosis._initialize import initialize
from jaxact.diagnosis._measure import Watch
from jaxact.diagnosis._rows import Row

__all__ = [
    "KINDS",
    "Change",
    "Diagnosis",
    "Finding",
    "Initialization",
    "Row",
    "Watch",
    "diagnose",
    "initialize",
    "watch",
]
