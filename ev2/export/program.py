"""What is exported: a network with its weights, from uint8 pictures to logits."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from ev2.checkpoint import pretrained
from ev2.models import normalize
from ev2.models.model import Model, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A network, its weights and its preprocessing.

    Attributes:
        model: the network, float32.
        variables: `{"params", "batch_stats"}`.
        mean: what is subtracted from each channel, in 0..255 units.
        std: what it is then divided by, in 0..255 units.
        image_size: side of the pictures in pixels.
        meta: of the checkpoint, JSON-able; empty without one.
    """

    model: Model
    variables: Variables
    mean: Sequence[float]
    std: Sequence[float]
    image_size: int
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one picture, `[S, S, 3]`."""
        return (self.image_size, self.image_size, 3)

    def logits(self, images: jax.Array) -> jax.Array:
        """Returns `[N, classes]` float32 of `images`, `[N, S, S, 3]` uint8 RGB."""
        return self.apply(self.variables, images)

    def apply(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Returns the same with other weights."""
        images = normalize.normalize(images, self.mean, self.std)
        return self.model.apply(variables, images, train=False)


def from_checkpoint(path: str, *, weights: str = "ema", image_size: int = 0) -> Program:
    """Returns the program of a checkpoint.

    Args:
        path: see `pretrained.load_pretrained`.
        weights: "ema" or "raw".
        image_size: pixels; 0 means the size it is evaluated at.

    Raises:
        InputError: if there is no checkpoint at `path`.
    """
    model, variables, meta = pretrained.load_pretrained(path, weights=weights)
    preprocessing = meta["preprocessing"]
    return Program(
        model=model,
        variables=variables,
        mean=preprocessing["mean"],
        std=preprocessing["std"],
        image_size=image_size or preprocessing["image_size"],
        meta=meta,
    )


def interpret(
    closed: jax.extend.core.ClosedJaxpr,
    inputs: Sequence[Any],
    apply: Callable[[jax.extend.core.JaxprEqn, list[Any]], Sequence[Any]],
) -> list[Any]:
    """Returns what the traced program `closed` makes of `inputs`, step by step.

    Calls are entered. Where a program has a form per platform, the default one is
    taken, so that a depthwise convolution is a grouped convolution.

    Args:
        closed: from `jax.make_jaxpr`.
        inputs: values of any kind; constants of the program are arrays.
        apply: makes the values of one primitive from those it takes.
    """
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(closed.jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        is_literal = isinstance(atom, jax.extend.core.Literal)
        return atom.val if is_literal else values[atom]

    for equation in closed.jaxpr.eqns:
        taken = [read(atom) for atom in equation.invars]
        params = equation.params
        if equation.primitive.name == "platform_index":
            made = [len(params["platforms"]) - 1]  # the last one is the default
        elif equation.primitive.name == "cond" and isinstance(taken[0], int):
            made = interpret(params["branches"][taken[0]], taken[1:], apply)
        elif equation.primitive.name in ("jit", "pjit"):
            made = interpret(params["jaxpr"], taken, apply)
        elif equation.primitive.name in ("custom_jvp_call", "custom_vjp_call"):
            made = interpret(params["call_jaxpr"], taken, apply)
        else:
            made = apply(equation, taken)
        values.update(zip(equation.outvars, made, strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def as_convolutions(function: Callable[[jax.Array], jax.Array]) -> Callable:
    """Returns `function` in the form that other runtimes know best.

    Depthwise convolutions are grouped ones, and products over the channels of a
    picture are 1x1 convolutions. Values differ by rounding only.
    """

    def rewritten(images: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
        (result,) = interpret(jax.make_jaxpr(function)(shape), [images], _apply)
        return result

    return rewritten


def _apply(equation: jax.extend.core.JaxprEqn, taken: list[Any]) -> Sequence[Any]:
    if is_pointwise(equation):
        x, kernel = taken
        layout = ("NHWC", "HWIO", "NHWC")
        return [
            lax.conv_general_dilated(
                x, kernel[None, None], (1, 1), "VALID", dimension_numbers=layout
            )
        ]
    made = equation.primitive.bind(*taken, **equation.params)
    return made if equation.primitive.multiple_results else [made]


def is_pointwise(equation: jax.extend.core.JaxprEqn) -> bool:
    """Whether `equation` is `[N, H, W, C]` times `[C, F]`, over the channels."""
    over_channels = (((3,), (0,)), ((), ()))
    return (
        equation.primitive.name == "dot_general"
        and equation.params["dimension_numbers"] == over_channels
    )


def random_pictures(program: Program, count: int) -> np.ndarray:
    """Returns `count` pictures of noise, uint8, the same at every call."""
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, *program.image_shape), np.uint8)


def symbolic_pictures(program: Program) -> jax.ShapeDtypeStruct:
    """Returns the input of `program.logits` with a batch of any size."""
    (batch,) = jax.export.symbolic_shape("batch")
    return jax.ShapeDtypeStruct((batch, *program.image_shape), jnp.uint8)
