"""ONNX, emitted here from the traced program: opset 17, a free batch.

    logits = onnxruntime.InferenceSession(path).run(None, {"images": images})[0]

jax2onnx 0.17.1 is no alternative: it needs an older orbax-checkpoint, does not support
`platform_index`, and transposes before and after every convolution.

Images enter as `[N, S, S, 3]` and are transposed once: the graph works on
`[N, C, H, W]`, the order of ONNX. Constants are computed here, and factors and terms
per channel are folded into the convolution before them: no normalization is left.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import JaxprEqn

import ev2
from ev2 import errors
from ev2.export import jaxpr
from ev2.export.servable import Servable

_OPSET, _IR_VERSION = 17, 8  # readable since onnxruntime 1.12 (2022)
_AXIS = {0: 0, 1: 2, 2: 3, 3: 1}  # from an axis of an image to ONNX's
_ELEMENTWISE = {
    **{"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"},
    **{"max": "Max", "min": "Min", "logistic": "Sigmoid"},
}


@dataclasses.dataclass(frozen=True)
class Value:
    """A value that depends on the images: its name in the graph and its rank."""

    name: str
    rank: int


@dataclasses.dataclass
class Convolution:
    """A convolution into which the following operations may be folded.

    Attributes:
        x: name of its input.
        kernel: `[k, k, I, O]` float64.
        bias: `[O]` float64.
        attributes: of the ONNX node.
        name: of its node; "" until a later operation needs it.
    """

    x: str
    kernel: np.ndarray
    bias: np.ndarray
    attributes: dict[str, Any]
    rank: int = 4
    name: str = ""


def write(source: Servable, path: os.PathLike) -> None:
    """Writes the file `path`; raises InputError for an unsupported operation."""
    import onnx
    from onnx import TensorProto, helper

    closed = jax.make_jaxpr(source.logits)(source.abstract_images)
    graph = _Graph()
    transposed = graph.node("Transpose", ["images"], perm=(0, 3, 1, 2))
    (result,) = jaxpr.interpret(closed, [Value(transposed, 4)], graph.apply)
    graph.node("Identity", [graph.name(result)], output="logits")
    describe = helper.make_tensor_value_info
    images = describe("images", TensorProto.UINT8, ["batch", *source.image_shape])
    classes = closed.out_avals[0].shape[1:]
    logits = describe("logits", TensorProto.FLOAT, ["batch", *classes])
    model = helper.make_model(
        helper.make_graph(
            graph.nodes, source.model.name, [images], [logits], graph.constants
        ),
        producer_name="ev2",
        producer_version=ev2.__version__,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    pathlib.Path(path).write_bytes(model.SerializeToString())


def load(path: os.PathLike, source: Servable) -> Callable:
    """Returns the function of the file `path`, uint8 images to logits."""
    import onnxruntime

    del source
    session = onnxruntime.InferenceSession(
        os.fspath(path), providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(["logits"], {"images": images})[0]


class _Graph:
    """The nodes and constants so far; a method per operation adds to them.

    A method returns None for a form of its operation that is not supported.
    """

    def __init__(self):
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, operator: str, inputs: list[str], *, output="", **options) -> str:
        """Adds a node and returns the name of its output."""
        from onnx import helper

        output = output or f"{operator.lower()}_{len(self.nodes)}"
        options["name"] = output
        self.nodes.append(helper.make_node(operator, inputs, [output], **options))
        return output

    def constant(self, value: Any) -> str:
        """Adds a constant and returns its name."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        value = np.ascontiguousarray(value)
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def name(self, value: Any) -> str:
        """Returns the name of any value; adds a convolution or constant if needed."""
        if isinstance(value, Value):
            return value.name
        if isinstance(value, Convolution):
            if not value.name:
                kernel = value.kernel.transpose(3, 2, 0, 1).astype(np.float32)
                weights = [kernel, value.bias.astype(np.float32)]
                inputs = [value.x, *map(self.constant, weights)]
                value.name = self.node("Conv", inputs, **value.attributes)
            return value.name
        value = np.asarray(value)
        return self.constant(value.transpose(0, 3, 1, 2) if value.ndim == 4 else value)

    def apply(self, equation: JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        """Returns the outputs of one operation; constants are computed."""
        if not any(isinstance(value, Value | Convolution) for value in operands):
            return jaxpr.bind(equation, operands)
        operator = equation.primitive.name
        if jaxpr.is_pointwise(equation):
            return [self._convolution(operands[0], operands[1][None, None])]
        if operator in _ELEMENTWISE:
            return [self._elementwise(operator, operands)]
        emit = getattr(self, f"_{operator}", None)
        output = emit and emit(*operands, **equation.params)
        if output is None:
            raise errors.InputError(
                f"format: 'onnx' does not support the operation {operator} of this "
                "network; choose another format"
            )
        return [output]

    def _elementwise(self, operator: str, operands: list[Any]) -> Any:
        folded = _fold(operator, *operands) if len(operands) == 2 else None
        if folded is not None:
            return folded
        rank = max(getattr(value, "rank", 0) for value in operands)
        if operator == "max" and np.ndim(operands[1]) == 0 and not np.any(operands[1]):
            return Value(self.node("Relu", [self.name(operands[0])]), rank)
        names = [self.name(value) for value in operands]
        return Value(self.node(_ELEMENTWISE[operator], names), rank)

    def _convolution(self, x: Any, kernel: Any, **attributes: Any) -> Convolution:
        kernel = np.asarray(kernel, np.float64)
        return Convolution(self.name(x), kernel, np.zeros(kernel.shape[-1]), attributes)

    def _conv_general_dilated(
        self, x, kernel, *, window_strides, padding, feature_group_count, **params
    ):
        assert set(params["rhs_dilation"]) == set(params["lhs_dilation"]) == {1}
        sizes = {"strides": window_strides, "pads": _pads(padding)}
        return self._convolution(x, kernel, **sizes, group=feature_group_count)

    def _dot_general(self, x, kernel, *, dimension_numbers, **_):
        if dimension_numbers == (((1,), (0,)), ((), ())) and x.rank == 2:
            return Value(self.node("MatMul", [self.name(x), self.name(kernel)]), 2)

    def _reduce_sum(self, x, *, axes, **_):
        if x.rank == 4 and axes == (1, 2):
            over = self.constant([_AXIS[axis] for axis in axes])
            return Value(self.node("ReduceSum", [self.name(x), over], keepdims=0), 2)

    def _broadcast_in_dim(self, x, *_, broadcast_dimensions, **__):
        if x.rank == 2 and broadcast_dimensions == (0, 3):  # [N, C] to [N, 1, 1, C]
            axes = self.constant([2, 3])
            return Value(self.node("Unsqueeze", [self.name(x), axes]), 4)

    def _slice(self, x, *, start_indices, limit_indices, strides, **_):
        if x.rank == 4:  # of rows and columns; batch and channels stay whole
            values = [v[1:3] for v in (start_indices, limit_indices)]
            values += [[_AXIS[1], _AXIS[2]], strides[1:3]]
            inputs = [self.name(x), *map(self.constant, values)]
            return Value(self.node("Slice", inputs), 4)

    def _reduce_window_max(self, x, *, window_dimensions, window_strides, **params):
        if x.rank == 4:
            name = self.node(
                "MaxPool",
                [self.name(x)],
                kernel_shape=window_dimensions[1:3],
                strides=window_strides[1:3],
                pads=_pads(params["padding"][1:3]),
            )
            return Value(name, 4)

    def _convert_element_type(self, x, *, new_dtype, **_):
        from onnx import helper

        to = helper.np_dtype_to_tensor_dtype(np.dtype(new_dtype))
        return Value(self.node("Cast", [self.name(x)], to=to), x.rank)


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    """Returns ((top, bottom), (left, right)) in ONNX's order: starts, then ends."""
    return [int(pad[end]) for end in (0, 1) for pad in padding]


def _fold(operator: str, x: Any, other: Any) -> Convolution | None:
    """Returns the convolution `x` with a following constant per channel folded in."""
    if not isinstance(x, Convolution) or isinstance(other, Value | Convolution):
        return None
    other = np.asarray(other, np.float64)
    channels = len(x.bias)
    per_channel = other.shape[-1:] in ((), (1,), (channels,))
    if other.size not in (1, channels) or not per_channel:
        return None
    other = np.broadcast_to(other.reshape(-1), (channels,))
    kernel, bias = x.kernel, x.bias
    if operator in ("add", "sub"):
        bias = bias + other if operator == "add" else bias - other
    elif operator in ("mul", "div"):
        factor = other if operator == "mul" else 1 / other
        kernel, bias = kernel * factor, bias * factor
    else:
        return None
    return dataclasses.replace(x, kernel=kernel, bias=bias, name="")
