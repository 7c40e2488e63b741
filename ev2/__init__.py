"""EfficientNetV2 with progressive learning, in JAX.

Importing this package is fast and touches no device: the functions below load
what they need when they are called.
"""

from typing import Any

__version__ = "0.1.0"


def list_models() -> list[str]:
    """Returns the names that `create_model` knows, sorted."""
    from ev2.models import arch

    return arch.list_models()


def create_model(name: str, **options: Any):
    """Returns a network by name; see `ev2.models.model.create_model`."""
    from ev2.models.model import create_model

    return create_model(name, **options)


def load_pretrained(path: str):
    """Returns `(model, variables, meta)` ; see `ev2.checkpoint.manager`."""
    from ev2.checkpoint import manager as checkpoint

    return checkpoint.load_pretrained(path)
