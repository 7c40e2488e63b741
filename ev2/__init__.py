"""EfficientNetV2 with progressive learning, in JAX.

Importing this package is fast and touches no device: the functions below are imported
from the package that defines them when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ev2.checkpoint.pretrained import load_pretrained
    from ev2.models.arch import list_models
    from ev2.models.model import create_model

__version__ = "0.1.0"
__all__ = ["create_model", "list_models", "load_pretrained"]

_MODULES = {
    "create_model": "ev2.models.model",
    "list_models": "ev2.models.arch",
    "load_pretrained": "ev2.checkpoint.pretrained",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ev2' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
