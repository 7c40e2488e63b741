"""Describes TPU slices by Cloud name: devices, topology, memory and peak rates.

The number in a Cloud name counts TensorCores for v2, v3, v4 and v5p and chips for v5e
and v6e. A JAX device is a TensorCore on v2 and v3 and a chip on later generations, so
v3-32 has 32 devices and v4-32 has 16.
"""

import dataclasses
import re
from collections.abc import Mapping

from ev2 import errors
from ev2.train import device_peaks

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of TPU.

    Attributes:
        device_kind: JAX's name of a device.
        hbm_gib: memory of a device that libtpu 0.0.52 grants to a program, from its
            refusal of a larger program.
        bytes_per_second: peak rate of a device's HBM. Source: Cloud TPU's page on each
            generation, per chip; a v2 or v3 chip is two devices.
        shapes: topology by the number in the slice's name.
        cores_per_device: counted cores per device.
        options: options of libtpu besides the topology.
    """

    device_kind: str
    hbm_gib: float
    bytes_per_second: float
    shapes: Mapping[int, str]
    cores_per_device: int = 1
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def flops_per_second(self) -> float:
        """Peak rate of a device in bfloat16, FLOP/s."""
        return device_peaks.TPU_FLOPS_PER_SECOND[self.device_kind]

    @property
    def hbm_bytes(self) -> int:
        """Memory of a device for a program, bytes."""
        return int(self.hbm_gib * GIB)


_V2 = {8: "2x2", 32: "4x4", 128: "8x8", 256: "8x16", 512: "16x16"}
_V3 = _V2 | {64: "4x8", 1024: "16x32", 2048: "32x32"}
_CHIPS_2D = {
    **{1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16"},
    256: "16x16",
}
_CORES_3D = {
    **{8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8"},
    **{512: "4x8x8", 1024: "8x8x8", 2048: "8x8x16", 4096: "8x16x16"},
}
_V5P = _CORES_3D | {8192: "16x16x16", 12288: "16x16x24"}

_MEGACORE = {"chip_config_name": "megacore"}  # one device per chip

GENERATIONS = {
    "v2": Generation("TPU v2", 7.48, 700e9 / 2, _V2),
    "v3": Generation("TPU v3", 15.48, 900e9 / 2, dict(sorted(_V3.items()))),
    "v4": Generation("TPU v4", 30.75, 1228e9, _CORES_3D, 2, _MEGACORE),
    "v5e": Generation("TPU v5 lite", 15.75, 819e9, _CHIPS_2D),
    "v5p": Generation("TPU v5", 95.73, 2765e9, _V5P, 2),
    "v6e": Generation("TPU v6 lite", 31.24, 1638e9, _CHIPS_2D),
}
_ALIASES = {"v5litepod": "v5e"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """One slice: its Cloud name, topology ("v3:4x4") and number of devices."""

    name: str
    generation: Generation
    topology: str
    devices: int


def find(name: str) -> Slice:
    """Returns the slice called `name`, such as "v3-32" or "v5litepod-16".

    Raises:
        InputError: no slice has the name; the message has the nearest slices.
    """
    match = re.fullmatch(r"(v\d\w*)-(\d+)", name)
    short = _ALIASES.get(match[1], match[1]) if match else ""
    if not match or short not in GENERATIONS:
        known = ", ".join(f"{key}-N" for key in GENERATIONS)
        raise errors.InputError(
            f"tpu: {name!r} is not a slice of Cloud TPU; give one of {known}"
        )
    generation, count = GENERATIONS[short], int(match[2])
    if count not in generation.shapes:
        below = [n for n in sorted(generation.shapes) if n < count][-1:]
        above = [n for n in sorted(generation.shapes) if n > count][:1]
        names = " and ".join(f"{match[1]}-{n}" for n in below + above)
        raise errors.InputError(f"tpu: there is no slice {name!r}; nearest: {names}")
    return Slice(
        name=name,
        generation=generation,
        topology=f"{short}:{generation.shapes[count]}",
        devices=count // generation.cores_per_device,
    )
