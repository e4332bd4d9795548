"""Whether what `diagnose` finds can be cured: the planted faults of `diagnose_models.py` trained on digits, mended.

    python scripts/initialize_cures.py            # all 31, 3 seeds: about ten CPU minutes
    python scripts/initialize_cures.py --seeds 1 --only tanh

Three starts of each model are trained with the same budget, rate and batches. The faulty one. The cured one: the faulty
one after `jaxact.initialize(fn, params, x)` with its defaults where scale is the fault; else with the remedy that the
finding prints applied by hand and nothing else; or with both, where the column says so. And a healthy twin, drawn as
its textbook says. Said beforehand: the cured one reaches the twin where its mean test accuracy is at least that of the
twin less the larger of 2 % and twice the standard error of the twin's mean over seeds. A twin that does not learn
itself (below twice chance) proves nothing, and its row does not count as reached. Where the faulty one reaches the twin
too, 200 steps of Adam mended what was wrong, or the fault was not met; the verdict says so.

Images are what each model takes: 64 numbers, 8 x 8 with three equal channels, 16 tokens of 4 numbers thrice, or as many
steps of 4 as the model's sequences have. A model's first ten outputs are scores; where it has five, classes are digits
modulo 5. Float16 and bfloat16 faults are trained in their type, cured ones as the remedy says.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import diagnose_models as models
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from diagnose_models import Case, Size
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxact
from jaxact import activations, adapters, theory, xla

NUM_STEPS, BATCH, RATE = 200, 128, 1e-3
LEAST = 0.02


class Trained(NamedTuple):
    """A model on its way to training.

    Attributes:
        call: (params, x) -> scores.
        params: where it starts.
        inputs: digits [image, 64] of mean 0 and second moment 1 -> what it takes.
        loss_scale: what the loss is multiplied by.
        optimiser: of optax.
    """

    call: Callable[[Any, Any], Any]
    params: Any
    inputs: Callable[[Any], Any]
    loss_scale: float = 1.0
    optimiser: Any = optax.adam(RATE)


class Cure(NamedTuple):
    """What is done about a fault.

    Attributes:
        twin: a healthy model.
        remedy: (case, its size) -> the case mended as the finding says; None where scale is all.
        is_initialized: whether `initialize` draws the weights, after the remedy.
        told: what the table says.
    """

    twin: Callable[[Size], Any]
    remedy: Callable[[Any, Size], Any] | None = None
    is_initialized: bool = True
    told: str = "initialize"


# --- What digits look like to a model ---------------------------------------------------------------------------------


def shaped_like(x: Any) -> Callable[[Any], Any]:
    """Digits [image, 64] in the shape of a case's inputs."""
    if x.ndim == 2:
        return lambda digits: digits
    if x.ndim == 4:
        return lambda digits: jnp.repeat(digits.reshape(-1, 8, 8, 1), x.shape[-1], -1)
    tokens, width = x.shape[1:]
    if width == 12:
        return lambda digits: jnp.tile(digits.reshape(-1, 16, 4), (1, 1, 3))
    return lambda digits: jnp.tile(digits.reshape(-1, 16, 4), (1, math.ceil(tokens / 16), 1))[:, :tokens]


def trained(case: Any, **options: Any) -> Trained:
    """A case, or what a remedy made of one, ready for training."""
    if isinstance(case, Trained):
        return case
    *model, x = case.args
    found = adapters.as_parametric(model[0] if len(model) == 1 else tuple(model))
    shape = shaped_like(x)
    return Trained(found.call, found.params, lambda digits: shape(digits).astype(x.dtype), **options)


# --- Healthy twins ----------------------------------------------------------------------------------------------------


def plain_twin(act: Any, depth: int, scale: float) -> Callable[[Size], Case]:
    """Bare layers of a scale."""
    return lambda size: Case((models.plain(act), models.weights(size, depth, scale), models.inputs(size)))


def orthogonal(size: Size, depth: int) -> list[Any]:
    """Orthogonal matrices."""
    return [jnp.linalg.qr(w)[0] for w in models.weights(size, depth)]


def tanh_twin(size: Size) -> Case:
    """The edge of chaos."""
    ws = jnp.stack(orthogonal(size, 120))
    return Case((models.scanned(jnp.tanh), ws, models.inputs(size)))


def mlp_twin(act: Any, depth: int, scale: float) -> Callable[[Size], Case]:
    """Layers of NNX."""
    return lambda size: Case((models.MLP(size, depth, act, scale=scale), models.inputs(size)))


def convolutions(size: Size) -> Case:
    """He's scale with the whole window."""

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            he = nn.initializers.he_normal()
            for _ in range(int(6 * size.depth)):
                x = nn.relu(nn.Conv(size.width // 4, (3, 3), kernel_init=he)(x))
            return nn.Dense(10)(x.mean((1, 2)))

    return models.linen(Linen(), models.images(size), size)


def perceptron(depth: int, act: Any = jax.nn.relu) -> Callable[[Size], Case]:
    """Equinox' own."""

    def make(size: Size) -> Case:
        key = jax.random.key(size.seed)
        return Case(
            (eqx.nn.MLP(size.width, 10, size.width, depth, activation=act, key=key), models.inputs(size))
        )

    return make


def biased_twin(size: Size) -> Case:
    """Layers of tanh at the critical point, biases of 0."""
    fn = models.ordered(size).args[0]
    params = [(w, jnp.zeros(size.width)) for w in orthogonal(size, 20)]
    return Case((fn, params, models.inputs(size)))


def residual(act: Any, norm: bool = False) -> Callable[[Any, Any], Any]:
    """Layers h + act(norm(h)) W, after a first product."""

    def fn(params: Any, x: Any) -> Any:
        h = x @ params[0]
        for w in params[1:]:
            y = (h - h.mean(0)) * jax.lax.rsqrt(h.var(0) + 1e-5) if norm else h
            h = h + act(y) @ w
        return h

    return fn


def residual_twin(act: Any, depth: int, norm: bool = False) -> Callable[[Size], Case]:
    """Branches of 1 / depth each."""

    def make(size: Size) -> Case:
        first, *ws = models.weights(size, depth)
        return Case((residual(act, norm), [first, *(w / math.sqrt(depth) for w in ws)], models.inputs(size)))

    return make


def stream_twin(size: Size) -> Case:
    """Branches that start at 1 / 16 of the stream."""
    init = nnx.initializers.variance_scaling(1 / 16, "fan_in", "normal")
    return Case((models.Stream(size, 16, init), models.inputs(size)))


def recurrent_twin(act: Any, scale: float) -> Callable[[Size], Case]:
    """An orthogonal recurrent matrix."""

    def make(size: Size) -> Case:
        (w,) = orthogonal(Size(size.width, 1, 5 + size.seed), 1)
        return Case((models.recurrent(act), models.recurrent_params(size, scale * w), models.sequences(size)))

    return make


def tied_twin(size: Size) -> Case:
    """The shared matrix at He's scale, orthogonal."""
    case = models.tied_scan(size)
    fn, params, x = case.args
    (w,) = orthogonal(size, 1)
    return Case((fn, params | {"shared": math.sqrt(2) * w}, x))


def tanh_of(params: Any, x: Any) -> Any:
    """Three layers without a logarithm."""
    h = jnp.tanh(x @ params["first"])
    return jnp.tanh(h @ params["second"]) @ params["third"]


def logarithm_twin(size: Size) -> Case:
    """The same weights, other functions between them."""
    _, params, x = models.not_a_number(size).args
    return Case((tanh_of, params, x))


def root_twin(size: Size) -> Case:
    """jnp.abs in place of the root of a square."""

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(size.width)(x)
            return nn.Dense(5)(nn.Dense(size.width)(jnp.abs(x)))

    return models.linen(Linen(), models.inputs(size), size)


# --- Remedies by hand -------------------------------------------------------------------------------------------------


def shaped_activation(case: Case, size: Size) -> Case:
    """Of vanishing gradient: f = theory.shape(activations.tanh, depth), orthogonal weights."""
    act = theory.shape(activations.tanh, depth=13)
    return Case((models.plain(act), orthogonal(size, 13), case.args[-1]))


def standardized(case: Case, size: Size) -> Trained:
    """Of input scale and mean shift: (x - mean) / std over the training set, per entry."""
    del size
    ready = raw(case)
    seen = ready.inputs(data()[0])
    mean, std = seen.mean(0), seen.std(0) + 1e-6
    return ready._replace(inputs=lambda digits: (ready.inputs(digits) - mean) / std)


def _fault_of_inputs(case: Case) -> Callable[[Any], Any]:
    """Digits as raw as the case's inputs are."""
    mean, std = float(jnp.mean(case.args[-1])), float(jnp.std(case.args[-1]))
    return lambda digits: mean + std * digits


def raw(case: Case) -> Trained:
    """The case with its inputs as raw as they are."""
    return trained(case)._replace(inputs=_fault_of_inputs(case))


def branched(norm: bool, act: Any) -> Callable[[Case, Size], Case]:
    """Of post-activation and batch norm explosion: the activation, and the norm, within the branch."""

    def remedy(case: Case, size: Size) -> Case:
        del size
        return Case((residual(act, norm), *case.args[1:]))

    return remedy


def with_attributes(**changes: Any) -> Callable[[Case, Size], Case]:
    """A transformer with a switch thrown, its weights as they were."""

    def remedy(case: Case, size: Size) -> Case:
        del size
        model, x = case.args
        for name, value in changes.items():
            for each in [model, *model.attention]:
                if hasattr(each, name):
                    setattr(each, name, value)
        return Case((model, x))

    return remedy


def in_float32(case: Case, size: Size) -> Case:
    """Of overflow and underflow: parameters and products in float32."""
    del size
    fn, params, x = case.args
    return Case((fn, models.half(params, jnp.float32), x.astype(jnp.float32)))


def rescaled_loss(case: Case, size: Size) -> Trained:
    """Of underflow: parameters in float32, and the loss multiplied by 2^14, which is divided out."""
    return trained(in_float32(case, size), loss_scale=2.0**14)


def guarded_logarithm(case: Case, size: Size) -> Case:
    """Of not finite: the unsafe branch guarded within `where`."""
    del size

    def fn(params: Any, x: Any) -> Any:
        h = x @ params["first"] + 1
        safe = jnp.where(h > 0, h, 1.0)
        h = jnp.where(h > 0, jnp.log(safe), 0.0) @ params["second"]
        return jnp.tanh(h) @ params["third"]

    return Case((fn, *case.args[1:]))


def guarded_root(case: Case, size: Size) -> Case:
    """Of not finite: the root kept away from 0, by the same parameters."""
    (_, variables), x = case.args

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = jnp.square(nn.Dense(size.width, name="first")(x))
            root = jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)
            return nn.Dense(5, name="third")(nn.Dense(size.width, name="second")(root))

    return Case(((Linen(), variables), x))


def slower(case: Case, size: Size) -> Trained:
    """Of learning rate: the optimiser that the finding's code makes."""
    del size
    ready = trained(case)
    x, _, y, _ = data()

    def loss(scores: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(scores, y[:256]).mean()

    found = jaxact.diagnose(case.args[0], x[:256], loss=loss, learning_rate=30.0, jacobian=False)
    code = next(each.code for each in found.findings if each.kind == "learning rate")
    made: dict[str, Any] = {"optax": optax}
    exec(code, made)
    return ready._replace(optimiser=made["tx"])


RELU, GELU, SELU = jax.nn.relu, jax.nn.gelu, jax.nn.selu
LEAKY = partial(jax.nn.leaky_relu, negative_slope=0.9)
REMEDY = {"is_initialized": False, "told": "remedy"}
CURES: dict[str, Cure] = {
    "gain 3 times He's": Cure(plain_twin(RELU, 8, 2.0)),
    "He on tanh, deep": Cure(tanh_twin),
    "LeCun on relu": Cure(mlp_twin(RELU, 20, 2.0)),
    "He on selu": Cure(plain_twin(SELU, 24, 1.0)),
    "LeCun on gelu, deep": Cure(mlp_twin(GELU, 24, 2.16)),
    "He on leaky_relu(0.9)": Cure(plain_twin(LEAKY, 24, 2 / 1.81)),
    "deep sigmoid": Cure(biased_twin, shaped_activation, **REMEDY),
    "one layer times 20": Cure(plain_twin(RELU, 10, 2.0)),
    "last layer times 0.001": Cure(mlp_twin(RELU, 6, 2.0)),
    "a layer of zeros": Cure(mlp_twin(RELU, 6, 2.0)),
    "a layer of positive weights": Cure(plain_twin(RELU, 6, 2.0)),
    "fan without the window": Cure(convolutions),
    "relu bias of -6": Cure(mlp_twin(RELU, 5, 2.0)),
    "tanh layer times 60": Cure(perceptron(4, jnp.tanh)),
    "pixels of 0 to 255": Cure(mlp_twin(jnp.tanh, 4, 1.0), standardized, **REMEDY),
    "inputs of mean 5": Cure(perceptron(3), standardized, **REMEDY),
    "biases that drown": Cure(biased_twin),
    "post-activation sigmoid": Cure(
        residual_twin(jax.nn.sigmoid, 16), branched(False, jax.nn.sigmoid), told="remedy + initialize"
    ),
    "plain batch norm, deep": Cure(
        residual_twin(RELU, 40, True), branched(True, RELU), told="remedy + initialize"
    ),
    "residual sums unscaled": Cure(stream_twin),
    "transformer without norm": Cure(
        lambda size: Case((models.Transformer(size, 8), models.tokens(size))),
        with_attributes(normed=True), **REMEDY,
    ),
    "attention unscaled": Cure(
        lambda size: Case((models.Transformer(size, 3), models.tokens(size))),
        with_attributes(scaled=True), **REMEDY,
    ),
    "RNN of gain 3": Cure(recurrent_twin(RELU, 1.0)),
    "RNN of gain 0.3": Cure(recurrent_twin(jnp.tanh, 1.0)),
    "tied weights in a deep scan": Cure(tied_twin),
    "float16 overflow": Cure(plain_twin(RELU, 8, 2.0), in_float32, told="remedy + initialize"),
    "float16 underflow": Cure(plain_twin(RELU, 6, 2.0), rescaled_loss, **REMEDY),
    "bfloat16 steps lost": Cure(plain_twin(RELU, 6, 2.0), rescaled_loss, **REMEDY),
    "logarithm below 0": Cure(logarithm_twin, guarded_logarithm, **REMEDY),
    "root at 0": Cure(root_twin, guarded_root, **REMEDY),
    "rate beyond 2 / sharpness": Cure(
        lambda size: trained(mlp_twin(RELU, 4, 2.0)(size), optimiser=optax.sgd(0.1)), slower, **REMEDY
    ),
}  # fmt: skip
#: what a case is besides its model
FAULTY: dict[str, Callable[[Case], Trained]] = {
    "pixels of 0 to 255": raw,
    "inputs of mean 5": raw,
    "float16 underflow": lambda case: trained(case, loss_scale=1e-6),
    "bfloat16 steps lost": lambda case: trained(case, loss_scale=1e-3),
    "rate beyond 2 / sharpness": lambda case: trained(case, optimiser=optax.sgd(30.0)),
}
#: what would take minutes at width 64 and its own depth: 30 layers of 120, 8 channels, 4 blocks of 8
SIZES = {
    "He on tanh, deep": Size(depth=0.25),  # type: ignore[arg-type]
    "fan without the window": Size(width=32),
    "transformer without norm": Size(width=32, depth=0.5),  # type: ignore[arg-type]
    "attention unscaled": Size(width=32),
}


# --- Training ---------------------------------------------------------------------------------------------------------


def data() -> tuple[Any, ...]:
    """Digits and labels, to train on and to test with; the fourth image is blank, as of a dead camera."""
    return _DATA


def _digits() -> tuple[Any, ...]:
    x, y = load_digits(return_X_y=True)
    x = ((x - x.mean()) / x.std()).astype(np.float32)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.25, random_state=0)
    x[3] = 0
    return tuple(map(jnp.asarray, (x, x_test, y, y_test)))


_DATA = _digits()


class Training:
    """(start, seed) -> test accuracy; compiled once for starts that differ in their parameters alone."""

    def __init__(self, model: Trained):
        self.model = model
        self._run = jax.jit(self._accuracy)

    def __call__(self, params: Any, seed: int) -> float:
        """Train from here."""
        return float(self._run(params, jax.random.key(seed)))

    def _accuracy(self, params: Any, key: Any) -> Any:
        x, x_test, y, y_test = data()
        model = self.model
        x, x_test = model.inputs(x), model.inputs(x_test)
        count = min(jax.eval_shape(model.call, params, x[:2]).shape[-1], 10)
        optimiser = model.optimiser

        def loss(params: Any, rows: Any) -> Any:
            scores = model.call(params, x[rows])[:, :count].astype(jnp.float32)
            each = optax.softmax_cross_entropy_with_integer_labels(scores, y[rows] % count)
            return model.loss_scale * each.mean()

        def step(carry: Any, key: Any) -> tuple[Any, None]:
            params, state = carry
            grads = jax.grad(loss)(params, jax.random.randint(key, (BATCH,), 0, len(x)))
            updates, state = optimiser.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = (params, optimiser.init(params))
        (params, _), _ = jax.lax.scan(step, start, jax.random.split(key, NUM_STEPS))
        scores = model.call(params, x_test)[:, :count]
        found = jnp.argmax(scores, -1) == y_test % count
        return jnp.mean(found & jnp.isfinite(scores).all(-1))


def accuracies(name: str, num_seeds: int) -> tuple[np.ndarray, int]:
    """([faulty, cured or healthy; seed], the number of classes)."""
    cure, make = CURES[name], models.FAULTS[name]
    found = np.zeros((3, num_seeds))
    runs: list[Any] = [None] * 3
    for seed in range(num_seeds):
        size = SIZES.get(name, Size())._replace(seed=seed)
        faulty = FAULTY.get(name, trained)(make(size))
        mended = faulty if cure.remedy is None else trained(cure.remedy(make(size), size))
        if cure.is_initialized:
            batch = mended.inputs(data()[0][:256])
            start = jaxact.initialize(mended.call, mended.params, batch, key=jax.random.key(seed))
            mended = mended._replace(params=start.params)
        for k, each in enumerate((faulty, mended, trained(cure.twin(size)))):
            if runs[k] is None:
                runs[k] = runs[0] if k == 1 and cure.remedy is None else Training(each)
            found[k, seed] = runs[k](each.params, seed)
    count = jax.eval_shape(faulty.call, faulty.params, faulty.inputs(data()[0][:2])).shape[-1]
    return found, min(count, 10)


def reaches(cured: np.ndarray, twin: np.ndarray) -> bool:
    """Whether the mean is the twin's, less the tolerance."""
    error = np.std(twin, ddof=1) / math.sqrt(twin.size) if twin.size > 1 else 0.0
    return bool(cured.mean() >= twin.mean() - max(LEAST, 2 * error))


def main(argv: list[str] | None = None) -> int:
    """Print the table; 0 where 90 % reach their twins."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="faults whose name holds this")
    options = parser.parse_args(argv)
    xla.compile_fast()
    print(f"{'fault':28} {'cure':20} {'faulty':>12} {'cured':>12} {'healthy':>12}  verdict")
    counts = {
        "reaches": 0,
        "reaches, as the faulty one does": 0,
        "falls short": 0,
        "its twin does not learn": 0,
    }
    for name, cure in CURES.items():
        if options.only not in name:
            continue
        began = time.process_time()
        found, num_classes = accuracies(name, options.seeds)
        verdict = "falls short"
        if reaches(*found[1:]):
            verdict = "reaches, as the faulty one does" if reaches(found[0], found[2]) else "reaches"
        verdict = verdict if found[2].mean() >= 2 / num_classes else "its twin does not learn"
        counts[verdict] += 1
        columns = " ".join(f"{100 * each.mean():5.1f} +- {50 * np.ptp(each):3.1f}" for each in found)
        print(
            f"{name:28} {cure.told:20} {columns}  {verdict} ({time.process_time() - began:.0f} s)", flush=True
        )
    print(", ".join(f"{what}: {count}" for what, count in counts.items()))
    reached = sum(count for verdict, count in counts.items() if verdict.startswith("reaches"))
    return 0 if reached >= 0.9 * sum(counts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
