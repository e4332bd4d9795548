"""A study of small networks that learn in a second; the config that the tests of several hosts load by its path."""

import dataclasses
import os
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pandas as pd
import xarray as xr

from jaxact.activations import Activation, relu, tanh
from train import blocks
from train.experiment import Cell
from train.tasks import FromText, GaussianMixture
from train.trial import TrainingStudy, parts


@dataclass(frozen=True, kw_only=True)
class Learning(TrainingStudy):
    """Train; where the environment says ENDLESS, all cells but the first without end; a cell that FAILS names fails.

    Attributes:
        activations: compared.
        depths: of the networks.
        learning_rate: of the optimiser.
        measure_every: steps.
    """

    task: FromText = GaussianMixture(num_train=256, num_test=128)
    activations: tuple[Activation, ...] = (tanh, relu)
    depths: tuple[int, ...] = (1, 2)
    learning_rate: float = 0.05
    measure_every: int = 10
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    width: int = 8
    num_steps: int = 40

    def smoke(self):
        return dataclasses.replace(self, num_steps=10)

    def cells(self):
        return [
            Cell(f"{f.name}/{n}", {"activation": f, "depth": n})
            for f in self.activations
            for n in self.depths
        ]

    def run(self, cell, *, progress):
        if os.environ.get("FAILS") == cell.name:
            raise ZeroDivisionError("a bug in the study")
        trial, norm = _trial(self)
        setting = self.setting(cell)
        while True:
            states, curves = trial.train(trial.start(*setting, sigma_w=jnp.float32(1.5)), *setting)
            progress(0.5)
            if "ENDLESS" not in os.environ or cell == self.cells()[0]:
                break
        taken, steps = trial.taken_at(
            trial.start(*setting, sigma_w=jnp.float32(1.5)), *setting, measured="test_accuracy", least=0.5
        )
        measured = {
            "norm": trial.host(norm(states)),
            "taken_norm": trial.host(norm(taken)),
            "taken_step": steps,
            "diverged_step": trial.diverged_step(states),
        }
        axes = ("activation", "depth", "seed")
        found = {name: (axes, value[None, None]) for name, value in measured.items()}
        found |= {name: ((*axes, "step"), value[None, None]) for name, value in curves.items()}
        labels = {"activation": [cell.coords["activation"].name], "depth": [cell.coords["depth"]]}
        dataset = xr.Dataset(found, {**labels, "seed": [*self.seeds], "step": self.steps()})
        for name in dataset.variables:
            dataset[name].attrs = {"units": "1", "long_name": f"the {name}"}
        return dataset

    @staticmethod
    def figures(result):
        return {}

    @staticmethod
    def findings(result):
        return [f"{result.sizes['seed']} networks were trained."]

    @staticmethod
    def tables(result):
        return {"depths": pd.DataFrame({"depth": result.depth.values})}


_made = {}


def _trial(study):
    if not _made:
        data = study.task.build()
        network = blocks.network(data, width=study.width, max_depth=max(study.depths), activation=relu)
        trial = study.trial(network, parts(data), evaluate={"test": "test"})

        def norm(state):
            return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(state.params)))

        _made["trial"] = trial, trial.program(norm)
    return _made["trial"]


def get_config():
    return Learning()
