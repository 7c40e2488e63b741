"""Our forms of a convolution beside XLA's own, here: `ev2 bench convolution`.

`ev2/models/ops/convolution.py` picks its forms by this table: the value, and the
value with one of its two gradients, for convolutions of EfficientNetV2-S at 128 px (16
images, float32) and a 5x5 one of EfficientNet-B0.
"""

import functools
import itertools
import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tqdm

from ev2.models.ops import convolution
from ev2.train import timing


class Case(NamedTuple):
    """A convolution of maps `[images, side, side, channels]`; 0 features: depthwise."""

    side: int
    channels: int
    features: int
    kernel: int
    stride: int


CASES = (
    Case(16, 256, 0, 3, 1),
    Case(8, 960, 0, 3, 1),
    Case(16, 256, 0, 3, 2),
    Case(32, 144, 0, 5, 2),
    Case(32, 48, 192, 3, 1),
    Case(16, 64, 256, 3, 1),
    Case(64, 24, 96, 3, 2),
    Case(64, 24, 24, 3, 1),
)
PARTS = ("value", "by input", "by kernel")


def measure(
    *, cases: tuple[Case, ...] = CASES, images: int = 16
) -> list[dict[str, Any]]:
    """Returns a row per case and part: the case, "part", "ours_ms" and "xla_ms".

    Milliseconds are medians of a call, the value being part of each gradient's.
    """
    rows = []
    for case, part in tqdm.tqdm(list(itertools.product(cases, PARTS)), unit="row"):
        x, kernel = _inputs(case, images)
        conv = convolution.conv if case.features else convolution.depthwise_conv
        ours = functools.partial(conv, stride=case.stride)
        theirs = functools.partial(convolution.by_xla, stride=case.stride, pads="SAME")
        times = {
            name: _milliseconds(form, part, x, kernel)
            for name, form in (("ours_ms", ours), ("xla_ms", theirs))
        }
        rows.append({**case._asdict(), "part": part, **times})
    return rows


def format_table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows of `measure` as a table."""
    lines = [
        f"{jax.default_backend()}, jax {jax.__version__}, float32",
        "map           kernel  stride  part          ours ms    XLA ms",
    ]
    for row in rows:
        kind = f"to {row['features']}" if row["features"] else "depthwise"
        shape = f"{row['side']}x{row['side']}x{row['channels']}"
        lines.append(
            f"{shape:<12}{row['kernel']:>3}x{row['kernel']}{row['stride']:>7}   "
            f"{row['part']:<11}{row['ours_ms']:>10.2f}{row['xla_ms']:>10.2f}  {kind}"
        )
    return "\n".join(lines)


def _inputs(case: Case, images: int) -> tuple[jax.Array, jax.Array]:
    shape = (images, case.side, case.side, case.channels)
    inputs = case.channels if case.features else 1
    window = (case.kernel, case.kernel, inputs, case.features or case.channels)
    rngs = jax.random.split(jax.random.key(0))
    return jax.random.normal(rngs[0], shape), jax.random.normal(rngs[1], window)


def _milliseconds(conv, part: str, x: jax.Array, kernel: jax.Array) -> float:
    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(conv(x, kernel)))

    argument = {"by input": 0, "by kernel": 1}
    function = jax.grad(loss, argument[part]) if part in argument else conv
    compiled = jax.jit(function).lower(x, kernel).compile()
    calls = timing.time_calls(lambda: jax.block_until_ready(compiled(x, kernel)))
    return 1e3 * statistics.median(calls)
