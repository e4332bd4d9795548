"""jaxact: activation functions, initialisation and residual blocks, in theory and by measurement.

The packages below are imported when they are first asked for: `import jaxact; jaxact.activations.relu`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxact import (
        activations,
        adapters,
        cache,
        diagnosis,
        errors,
        escapes,
        files,
        fit,
        lipschitz,
        nn,
        numerics,
        page,
        probes,
        streams,
        theme,
        theory,
        trace,
        xla,
    )
    from jaxact.diagnosis import diagnose, initialize

    __version__: str

__all__ = [
    "activations",
    "adapters",
    "cache",
    "diagnose",
    "diagnosis",
    "errors",
    "escapes",
    "files",
    "fit",
    "initialize",
    "lipschitz",
    "nn",
    "numerics",
    "page",
    "probes",
    "streams",
    "theme",
    "theory",
    "trace",
    "xla",
]

#: functions at the top -> the package that they are from
_FUNCTIONS = {"diagnose": "jaxact.diagnosis", "initialize": "jaxact.diagnosis"}


def __getattr__(name: str) -> Any:
    # Not at the top: jax takes a second, flax another, and who wants activations needs no flax.
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "__version__":
        from jaxact._version import installed

        return installed()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
