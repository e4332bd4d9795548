"""Activation functions: every nonlinearity with its exact derivatives and the facts theory needs."""

from jaxact.activations._activation import Activation, Interval
from jaxact.activations._estimate import from_callable
from jaxact.activations._parse import parse
from jaxact.activations._registry import names
from jaxact.activations._select import Selected, select
from jaxact.activations._zoo import *  # noqa: F403

__all__ = ["Activation", "Interval", "Selected", "from_callable", "names", "parse", "select"]
__all__ += names()  # the whole zoo
