"""A study of nothing, in no time: every cell's values follow from its coordinates.

The config file that the tests of config, runner and command line load by its path.
"""

import hashlib
import time
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from jaxact.activations import Activation, relu, tanh
from train.experiment import Cell


@dataclass(frozen=True, kw_only=True)
class Fake:
    """Count layers.

    Attributes:
        activations: only their names are used.
        depths: the number of layers of each cell.
        rate: any positive number.
        seconds: how long a cell sleeps.
        trouble: what goes wrong in the last cell.
    """

    activations: tuple[Activation, ...] = (tanh, relu)
    depths: tuple[int, ...] = (4, 2)
    rate: float = 0.5
    seconds: float = 0.0
    trouble: str = "nothing"

    def __post_init__(self):
        if not self.depths:
            raise ValueError("`depths` must hold at least one value, got none. Use --depths 4.")
        if min(self.depths) < 1:
            raise ValueError(f"`depths` must be positive, got {min(self.depths)}. Use 1 or more.")

    def smoke(self):
        return replace(self, depths=self.depths[:1])

    def cells(self):
        return [
            Cell(f"{activation.name}/depth={depth}", {"activation": activation, "depth": depth})
            for activation in self.activations
            for depth in self.depths
        ]

    def run(self, cell, *, progress):
        progress(0.0, "sleeping")
        time.sleep(self.seconds)
        if cell == self.cells()[-1]:
            self._be_troublesome()
        progress(1.0)
        depth, name = cell.coords["depth"], cell.coords["activation"].name
        layer = np.arange(1, depth + 1)
        axes = ("activation", "depth")
        moment = np.float32(self.rate) * (len(name) + layer.astype(np.float32) / depth)
        dataset = xr.Dataset(
            {
                "second_moment": ((*axes, "layer"), moment[None, None]),
                "num_parameters": (axes, [[depth * 10]]),
                "censored": (axes, [[depth > 3]]),
                "run_seconds": (axes, [[time.perf_counter()]]),
            },
            {"activation": [name], "depth": [depth], "layer": layer},
        )
        for name in dataset.variables:
            dataset[name].attrs = {"units": "s" if name == "run_seconds" else "1", "long_name": f"the {name}"}
        return dataset

    def _be_troublesome(self):
        if self.trouble == "bug":
            raise ZeroDivisionError("a bug in the study")
        if self.trouble == "no data":
            raise FileNotFoundError("the data were not found in /nowhere. Get them somewhere.")
        if self.trouble == "stuck":  # a native call that no signal interrupts, as compiling is
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2 * 10**9)
        if self.trouble == "compiling":  # for a minute

            def unrolled(x):
                for _ in range(100):
                    x = jnp.tanh(x @ x) * jax.nn.gelu(x)
                return x.sum()

            jax.jit(jax.grad(unrolled))(jnp.ones((8, 8)))

    @staticmethod
    def figures(result):
        return {}

    @staticmethod
    def findings(result):
        return [f"{result.sizes['activation']} activations were counted."]

    @staticmethod
    def tables(result):
        return {"parameters": pd.DataFrame({"depth": result.depth.values})}


def get_config():
    return Fake()
