"""Every nonlinearity of jaxact: a decorated function in one of these three modules is found everywhere."""

from jaxact.activations._gated import *  # noqa: F403
from jaxact.activations._piecewise import *  # noqa: F403
from jaxact.activations._smooth import *  # noqa: F403
