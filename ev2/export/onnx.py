"""An ONNX file, made here from the traced program: opset 17, a free batch.

    logits = onnxruntime.InferenceSession(path).run(None, {"images": pictures})[0]

Why not a library: jax2onnx 0.17.1 asks for an orbax-checkpoint older than ours and ten
packages more; installed without its wishes, it does not know `platform_index`, in which
our depthwise convolutions are, and puts a transposition before and after every
convolution. The networks need a dozen operations, and those are below.

Pictures enter as `[N, S, S, 3]` and are turned once: inside, all is `[N, C, H, W]`, the
order of ONNX. What is constant is computed here, and a convolution takes in the factors
and terms per channel that follow it, so that no normalization is left.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core
import numpy as np

import ev2
from ev2 import errors
from ev2.export import program as programs

_OPSET, _IR_VERSION = 17, 8  # what onnxruntime 1.12 (2022) and all since can read
_AXIS = {0: 0, 1: 2, 2: 3, 3: 1}  # of a picture: ours to ONNX's
_ELEMENTWISE = {
    **{"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"},
    **{"max": "Max", "min": "Min", "logistic": "Sigmoid"},
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A value that depends on the pictures: its name in the graph and its rank."""

    name: str
    rank: int


@dataclasses.dataclass
class Convolution:
    """A convolution that may still take in what follows it.

    Attributes:
        x: name of its input.
        kernel: `[k, k, I, O]` float64.
        bias: `[O]` float64.
        attributes: of the ONNX node.
        made: its result, once that was needed.
    """

    x: str
    kernel: np.ndarray
    bias: np.ndarray
    attributes: dict[str, Any]
    rank: int = 4
    made: Tensor | None = None


def write(program: programs.Program, path: pathlib.Path) -> None:
    """Writes `program` to the file `path`.

    Raises:
        InputError: if the network has an operation that is not known here.
    """
    import onnx
    from onnx import TensorProto, helper

    closed = jax.make_jaxpr(program.logits)(programs.symbolic_pictures(program))
    graph = _Graph()
    turned = graph.node("Transpose", ["images"], perm=(0, 3, 1, 2))
    (result,) = programs.interpret(closed, [Tensor(turned, 4)], graph.apply)
    graph.node("Identity", [graph.name(result)], output="logits")
    shape = ["batch", *closed.out_avals[0].shape[1:]]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            program.model.name,
            [
                helper.make_tensor_value_info(
                    "images", TensorProto.UINT8, ["batch", *program.image_shape]
                )
            ],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
            graph.constants,
        ),
        producer_name="ev2",
        producer_version=ev2.__version__,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def load(path: pathlib.Path, program: programs.Program) -> Callable:
    """Returns the function, uint8 pictures to logits, that `path` holds."""
    del program
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(["logits"], {"images": images})[0]


class _Graph:
    """The nodes and constants so far, and how each operation adds to them."""

    def __init__(self):
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, operator: str, inputs: list[str], *, output="", **options) -> str:
        """Adds a node and returns the name of its result."""
        from onnx import helper

        output = output or f"{operator.lower()}_{len(self.nodes)}"
        options["name"] = output
        self.nodes.append(helper.make_node(operator, inputs, [output], **options))
        return output

    def constant(self, value: np.ndarray) -> str:
        """Adds a constant and returns its name."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        value = np.ascontiguousarray(value)
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def name(self, value: Any) -> str:
        """Returns the name of any value; a convolution is added when first asked."""
        if isinstance(value, Tensor):
            return value.name
        if isinstance(value, Convolution):
            if value.made is None:
                kernel = value.kernel.transpose(3, 2, 0, 1).astype(np.float32)
                bias = value.bias.astype(np.float32)
                inputs = [value.x, self.constant(kernel), self.constant(bias)]
                name = self.node("Conv", inputs, **value.attributes)
                value.made = Tensor(name, 4)
            return value.made.name
        value = np.asarray(value)
        return self.constant(value.transpose(0, 3, 1, 2) if value.ndim == 4 else value)

    def apply(
        self, equation: jax.extend.core.JaxprEqn, taken: list[Any]
    ) -> Sequence[Any]:
        """Returns the values that `equation` makes of those it takes."""
        if not any(isinstance(value, Tensor | Convolution) for value in taken):
            made = equation.primitive.bind(*taken, **equation.params)
            return made if equation.primitive.multiple_results else [made]
        operator = equation.primitive.name
        if programs.is_pointwise(equation):
            return [self._convolution(taken[0], taken[1][None, None])]
        if operator in _ELEMENTWISE:
            return [self._elementwise(operator, taken)]
        emit = getattr(self, f"_{operator}", None)
        made = emit and emit(*taken, **equation.params)
        if made is None:
            raise errors.InputError(
                f"format: 'onnx' does not know {operator}, which the network of this "
                "checkpoint has; choose another format"
            )
        return [made]

    def _elementwise(self, operator: str, taken: list[Any]) -> Any:
        melted = _melt(operator, *taken) if len(taken) == 2 else None
        if melted is not None:
            return melted
        rank = max(getattr(value, "rank", 0) for value in taken)
        if operator == "max" and np.ndim(taken[1]) == 0 and not np.any(taken[1]):
            return Tensor(self.node("Relu", [self.name(taken[0])]), rank)
        names = [self.name(value) for value in taken]
        return Tensor(self.node(_ELEMENTWISE[operator], names), rank)

    def _convolution(self, x: Any, kernel: Any, **attributes: Any) -> Convolution:
        kernel = np.asarray(kernel, np.float64)
        return Convolution(self.name(x), kernel, np.zeros(kernel.shape[-1]), attributes)

    def _conv_general_dilated(
        self, x, kernel, *, window_strides, padding, feature_group_count, **others
    ):
        assert set(others["rhs_dilation"]) == set(others["lhs_dilation"]) == {1}
        return self._convolution(
            x,
            kernel,
            strides=window_strides,
            pads=_pads(padding),
            group=feature_group_count,
        )

    def _dot_general(self, x, kernel, *, dimension_numbers, **_):
        if dimension_numbers == (((1,), (0,)), ((), ())) and x.rank == 2:
            return Tensor(self.node("MatMul", [self.name(x), self.name(kernel)]), 2)

    def _reduce_sum(self, x, *, axes, **_):
        if x.rank == 4 and axes == (1, 2):
            over = self.constant(np.array([_AXIS[axis] for axis in axes], np.int64))
            return Tensor(self.node("ReduceSum", [self.name(x), over], keepdims=0), 2)

    def _broadcast_in_dim(self, x, *_, broadcast_dimensions, **__):
        if x.rank == 2 and broadcast_dimensions == (0, 3):  # [N, C] to [N, 1, 1, C]
            axes = self.constant(np.array([2, 3], np.int64))
            return Tensor(self.node("Unsqueeze", [self.name(x), axes]), 4)

    def _slice(self, x, *, start_indices, limit_indices, strides, **_):
        if x.rank == 4:
            axes = (1, 2)  # the batch and the channels stay whole
            values = [
                np.array([of[axis] for axis in axes], np.int64)
                for of in (start_indices, limit_indices)
            ]
            values.append(np.array([_AXIS[axis] for axis in axes], np.int64))
            values.append(np.array([strides[axis] for axis in axes], np.int64))
            inputs = [self.name(x), *map(self.constant, values)]
            return Tensor(self.node("Slice", inputs), 4)

    def _reduce_window_max(self, x, *, window_dimensions, window_strides, **others):
        if x.rank == 4:
            name = self.node(
                "MaxPool",
                [self.name(x)],
                kernel_shape=window_dimensions[1:3],
                strides=window_strides[1:3],
                pads=_pads(others["padding"][1:3]),
            )
            return Tensor(name, 4)

    def _convert_element_type(self, x, *, new_dtype, **_):
        from onnx import helper

        to = helper.np_dtype_to_tensor_dtype(np.dtype(new_dtype))
        return Tensor(self.node("Cast", [self.name(x)], to=to), x.rank)


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    """((top, bottom), (left, right)) as ONNX has it: all starts, then all ends."""
    return [int(pad[end]) for end in (0, 1) for pad in padding]


def _melt(operator: str, x: Any, other: Any) -> Convolution | None:
    """A convolution with what follows it, if that is a constant per channel."""
    if not isinstance(x, Convolution) or isinstance(other, Tensor | Convolution):
        return None
    other = np.asarray(other, np.float64)
    channels = len(x.bias)
    if other.size not in (1, channels) or other.shape[-1:] not in (
        (),
        (1,),
        (channels,),
    ):
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
    return dataclasses.replace(x, kernel=kernel, bias=bias, made=None)
