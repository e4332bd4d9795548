"""Watch every product of a network as it trains on digits, in TensorBoard; `watch_wandb.py` is the same for W&B.

python scripts/watch_tensorboard.py [FOLDER], then tensorboard --logdir FOLDER; some seconds on one core. Needs
pip install "jaxact[study,tensorboard]".
"""

import math
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

from jaxact import adapters
from jaxact.diagnosis import watch


def train(
    *, depth: int = 10, num_steps: int = 300, every: int = 100
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train a plain tanh network; give the loss of every step, and the statistics of every `every`-th beside it."""
    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
    rngs = nnx.Rngs(0)
    hidden = [layer for _ in range(depth - 1) for layer in (nnx.Linear(64, 64, rngs=rngs), jnp.tanh)]
    model = adapters.as_parametric(nnx.Sequential(*hidden, nnx.Linear(64, 10, rngs=rngs)))

    def loss(outputs, labels):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))

    measured = watch(model, x[:128], loss=lambda outputs: loss(outputs, y[:128]))
    measure, optimizer = jax.jit(measured), optax.adam(1e-3)

    @jax.jit
    def update(params, state):
        value, gradient = jax.value_and_grad(lambda p: loss(model.call(p, x), y))(params)
        change, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, change), state, value

    params, state = model.params, optimizer.init(model.params)
    for step in range(num_steps + 1):
        numbers = tagged(measured.names, measure(params, x[:128])) if step % every == 0 else {}
        params, state, value = update(params, state)
        yield step, numbers | {"loss": float(value)}


def tagged(names: tuple[str, ...], measured: dict[str, jax.Array]) -> dict[str, float]:
    """The numbers that there are, as `statistic/layers.3.kernel`: TensorBoard takes no brackets."""
    return {
        f"{statistic}/{name.replace('[', '.').replace(']', '')}": float(value)
        for statistic, rows in jax.device_get(measured).items()
        for name, value in zip(names, rows, strict=True)
        if not math.isnan(value)
    }


def main(folder: str = "runs/watched", **options: int) -> None:
    """Train, and write the numbers to a folder."""
    from tensorboardX import SummaryWriter

    with SummaryWriter(folder) as writer:
        for step, numbers in train(**options):
            for tag, value in numbers.items():
                writer.add_scalar(tag, value, step)


if __name__ == "__main__":
    main(*sys.argv[1:])
