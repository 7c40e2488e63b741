"""Evaluates a traced program operation by operation, to rewrite or translate it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal


def interpret(
    closed: ClosedJaxpr,
    inputs: Sequence[Any],
    apply: Callable[[JaxprEqn, list[Any]], Sequence[Any]],
) -> list[Any]:
    """Returns the outputs of the traced program `closed` for `inputs`.

    Calls are entered. Of a form per platform the default is taken, in which a depthwise
    convolution is a grouped convolution.

    Args:
        closed: from `jax.make_jaxpr`.
        inputs: values of any kind; constants of the program are arrays.
        apply: returns the outputs of one operation for its inputs.
    """
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(closed.jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in closed.jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        outputs = _apply_one(equation, operands, apply)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def _apply_one(equation: JaxprEqn, operands: list[Any], apply: Callable):
    name, params = equation.primitive.name, equation.params
    if name == "platform_index":
        return [len(params["platforms"]) - 1]  # the last platform is the default
    if name == "cond" and isinstance(operands[0], int):
        return interpret(params["branches"][operands[0]], operands[1:], apply)
    if name in ("jit", "pjit"):
        return interpret(params["jaxpr"], operands, apply)
    if name in ("custom_jvp_call", "custom_vjp_call"):
        return interpret(params["call_jaxpr"], operands, apply)
    return apply(equation, operands)


def bind(equation: JaxprEqn, operands: list[Any]) -> Sequence[Any]:
    """Returns the outputs of one operation for arrays."""
    outputs = equation.primitive.bind(*operands, **equation.params)
    return outputs if equation.primitive.multiple_results else [outputs]


def is_pointwise(equation: JaxprEqn) -> bool:
    """Returns True for a product of `[N, H, W, C]` and `[C, F]` over C."""
    over_channels = (((3,), (0,)), ((), ()))
    return (
        equation.primitive.name == "dot_general"
        and equation.params["dimension_numbers"] == over_channels
    )


def with_convolutions(function: Callable[[jax.Array], jax.Array]) -> Callable:
    """Returns `function` in the form that other runtimes support best.

    Depthwise convolutions become grouped convolutions, and products over the channels
    of an image become 1x1 convolutions. Values differ by rounding only.
    """

    def apply(equation: JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        if not is_pointwise(equation):
            return bind(equation, operands)
        x, kernel = operands[0], operands[1][None, None]
        layout = ("NHWC", "HWIO", "NHWC")
        return [
            lax.conv_general_dilated(x, kernel, (1, 1), "VALID", None, None, layout)
        ]

    def rewritten(images: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
        (result,) = interpret(jax.make_jaxpr(function)(shape), [images], apply)
        return result

    return rewritten
