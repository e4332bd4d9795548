"""Flax NNX modules: stages, stacks of traced depth, networks and learned activations."""

from jaxact.nn._functional import Functional, functional
from jaxact.nn._learned import PReLU, Softplus, Swish
from jaxact.nn._lipschitz import OrthogonalConv, OrthogonalLinear, SpectralNorm, kernels
from jaxact.nn._networks import MLP, ResNet, calibrate
from jaxact.nn._recurrent import RNN
from jaxact.nn._shortened import shortened
from jaxact.nn._stack import Stack, Trace
from jaxact.nn._stages import Plain, PostAct, PreAct, Stage

__all__ = [
    "MLP",
    "RNN",
    "Functional",
    "OrthogonalConv",
    "OrthogonalLinear",
    "PReLU",
    "Plain",
    "PostAct",
    "PreAct",
    "ResNet",
    "Softplus",
    "SpectralNorm",
    "Stack",
    "Stage",
    "Swish",
    "Trace",
    "calibrate",
    "functional",
    "kernels",
    "shortened",
]
