"""Bounds on the Lipschitz constant of a straight-line program by an ellipsoid carried through its steps.

`step` has the three steps and their adjoints, `multipliers` the rules for V, `walk` the order in which a pass takes
them, `proof` the pass that proves a bound, `search` the one that lowers it, `intervals` what a region allows.
"""

from jaxact.lipschitz.ellipsoid.bound import bound

__all__ = ["bound"]
