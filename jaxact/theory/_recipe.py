"""The lines of Python that build the network of a prediction."""

from jaxact import activations
from jaxact.activations import Activation
from jaxact.errors import ArgumentError
from jaxact.theory._compare import Prediction

_CODE = """\
from flax import nnx
from jaxact import {modules}
from jaxact.theory import initializers

f = {activation}
init = {{
    "kernel_init": {kernel},
    "bias_init": {bias},
}}
rngs = nnx.Rngs(0)
layers = [nnx.Linear(784, 256, kernel_init=initializers.gaussian(), rngs=rngs)]  # inputs of mean square 1
for _ in range({depth}):
    layers += [f, nnx.Linear(256, 256, **init, rngs=rngs)]
model = nnx.Sequential(*layers, f, nnx.Linear(256, 10, rngs=rngs))
"""


def recipe(prediction: Prediction) -> str:
    r"""Write the Python that builds the network of a prediction in Flax NNX: activation, weights and biases.

        h_0 = W_in x,   h_{l+1} = W f(h_l) + b for l < depth,   y = W_out f(h_depth)

    with the prediction's initialisers for W and b; the sizes 784, 256 and 10 are an example's. It runs as it stands.
    The same initialisers are those of Linen (`linen.Dense`); text alone, no framework is imported here.

    Args:
        prediction: of `predict` or `compare`.

    Returns:
        Lines of Python that define `f`, `init` and `model`.

    Raises:
        ValueError: the activation is none of the zoo, so that no text names it.

    Example:
        >>> from jaxact.theory import predict
        >>> found = predict(activations.leaky_relu(0.2), depth=8, weights=("orthogonal",), shaping=())
        >>> print("\n".join(recipe(found.ranking[0]).splitlines()[4:9]))
        f = activations.parse("leaky_relu(0.2)")
        init = {
            "kernel_init": initializers.critical_orthogonal(f),
            "bias_init": nnx.initializers.zeros,
        }
    """
    uses_theory = prediction.shaping is not None or _uses_gain(prediction)
    return _CODE.format(
        modules="activations, theory" if uses_theory else "activations",
        activation=_activation(prediction),
        kernel=_kernel(prediction),
        bias=_bias(prediction),
        depth=prediction.depth,
    )


def _activation(prediction: Prediction) -> str:
    plain = _of_zoo(prediction.activation)
    if prediction.shaping is None:
        return plain
    return f'theory.shape({plain}, {prediction.depth}, method="{prediction.shaping}")'


def _of_zoo(activation: Activation) -> str:
    """An expression for an activation: an attribute for one without parameters."""
    name = activation.name
    if getattr(activations, name, None) == activation:
        return f"activations.{name}"
    try:
        is_known = activations.parse(name) == activation
    except ValueError:
        is_known = False
    if not is_known:
        raise ArgumentError(
            f"must have an activation of the zoo, got {name}, which no text names.",
            "Write the code with your own, and the prediction's sigma_w and sigma_b.",
            argument="prediction",
        )
    return f'activations.parse("{name}")'


def _kernel(prediction: Prediction) -> str:
    """An initialiser by its rule, which says more than its number."""
    law = prediction.weights
    if "critical" in prediction.initialisation:
        return f"initializers.critical_{law}(f{_given(prediction)})"
    if _uses_gain(prediction):
        return f"initializers.{law}(theory.gain(f))"
    if prediction.sigma_w == 1:
        return f"initializers.{law}()"
    return f"initializers.{law}({prediction.sigma_w!r})"


def _uses_gain(prediction: Prediction) -> bool:
    rules = prediction.initialisation
    return "variance-preserving" in rules and "critical" not in rules


def _bias(prediction: Prediction) -> str:
    if prediction.sigma_b == 0:
        return "nnx.initializers.zeros"
    return f"initializers.critical_bias(f{_given(prediction)})"


def _given(prediction: Prediction) -> str:
    return f", sigma_b={prediction.sigma_b!r}" if prediction.sigma_b else ""
