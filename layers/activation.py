"""Nonlinearities by the names of `hidden_act` in config.json."""

from collections.abc import Callable

from paddock.graph import Tensor
from paddock.graph import ops as F


def activate(x: Tensor, name: str) -> Tensor:
    """x through the nonlinearity that Hugging Face calls `name`; one of `ACTIVATIONS`."""
    return ACTIVATIONS[name](x)


def _of(kind: str) -> Callable[[Tensor], Tensor]:
    return lambda x: F.activation(x, kind)


def _relu2(x: Tensor) -> Tensor:
    """relu(x)^2: So et al. 2021, arxiv.org/abs/2109.08668."""
    y = F.activation(x, "relu")
    return y * y


def _quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of gelu, section 2 of arxiv.org/abs/1606.08415."""
    return x * F.activation(x * 1.702, "sigmoid")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": _of("silu"),
    "swish": _of("silu"),
    "gelu": _of("gelu"),
    "gelu_python": _of("gelu"),
    "gelu_fast": _of("gelu_tanh"),
    "gelu_new": _of("gelu_tanh"),
    "gelu_python_tanh": _of("gelu_tanh"),
    "gelu_pytorch_tanh": _of("gelu_tanh"),
    "gelu_tanh": _of("gelu_tanh"),
    "quick_gelu": _quick_gelu,
    "relu": _of("relu"),
    "relu2": _relu2,
    "sigmoid": _of("sigmoid"),
    "tanh": _of("tanh"),
}
