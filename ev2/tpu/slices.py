"""TPU slices by their Cloud names: devices, topology, and what a device can do.

Cloud counts TensorCores in the names of v2, v3, v4 and v5p and chips in those of v5e
and v6e. A device of JAX is a TensorCore on v2 and v3 and a chip on all others, so
v3-32 has 32 devices and v4-32 has 16.
"""

import dataclasses
import re
from collections.abc import Mapping

from ev2 import errors

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """One generation of TPU.

    Attributes:
        device_kind: what JAX calls a device.
        cores_per_device: of those that the slice's name counts.
        hbm_gib: memory of a device that libtpu 0.0.52 leaves to a program; a program
            that needs more is refused with this figure.
        flops_per_second: peak of a device in bfloat16.
        bytes_per_second: peak of a device's HBM.
        shapes: topology by the number in the slice's name.

    Source of the peaks: Cloud TPU's page on each generation, per chip; v2 and v3 chips
    are two devices. Tests ask libtpu for the topologies.
    """

    device_kind: str
    cores_per_device: int
    hbm_gib: float
    flops_per_second: float
    bytes_per_second: float
    shapes: Mapping[int, str]
    # What libtpu is told beside the topology: a v4 chip as one device.
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


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

GENERATIONS = {
    "v2": Generation(
        device_kind="TPU v2",
        cores_per_device=1,
        hbm_gib=7.48,
        flops_per_second=46e12 / 2,
        bytes_per_second=700e9 / 2,
        shapes=_V2,
    ),
    "v3": Generation(
        device_kind="TPU v3",
        cores_per_device=1,
        hbm_gib=15.48,
        flops_per_second=123e12 / 2,
        bytes_per_second=900e9 / 2,
        shapes=dict(sorted(_V3.items())),
    ),
    "v4": Generation(
        device_kind="TPU v4",
        cores_per_device=2,
        hbm_gib=30.75,
        flops_per_second=275e12,
        bytes_per_second=1228e9,
        shapes=_CORES_3D,
        options={"chip_config_name": "megacore"},
    ),
    "v5e": Generation(
        device_kind="TPU v5 lite",
        cores_per_device=1,
        hbm_gib=15.75,
        flops_per_second=197e12,
        bytes_per_second=819e9,
        shapes=_CHIPS_2D,
    ),
    "v5p": Generation(
        device_kind="TPU v5",
        cores_per_device=2,
        hbm_gib=95.73,
        flops_per_second=459e12,
        bytes_per_second=2765e9,
        shapes=_V5P,
    ),
    "v6e": Generation(
        device_kind="TPU v6 lite",
        cores_per_device=1,
        hbm_gib=31.24,
        flops_per_second=918e12,
        bytes_per_second=1638e9,
        shapes=_CHIPS_2D,
    ),
}
# Dense bfloat16 of GPUs, by how JAX's device kind begins. Source: NVIDIA's sheets.
_GPU_FLOPS_PER_SECOND = {
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "Tesla V100": 125e12,  # float16: it has no bfloat16
}
_ALIASES = {"v5litepod": "v5e"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """One slice: its Cloud name, topology ("v3:4x4") and number of devices."""

    name: str
    generation: Generation
    topology: str
    devices: int


def peak_flops_per_second(device_kind: str) -> float | None:
    """The peak of one device in bfloat16; None where it is not known, as of CPUs."""
    for generation in GENERATIONS.values():
        if generation.device_kind == device_kind:
            return generation.flops_per_second
    for kind, peak in _GPU_FLOPS_PER_SECOND.items():
        if device_kind.startswith(kind):
            return peak
    return None


def find(name: str) -> Slice:
    """Returns the slice called `name`, such as "v3-32" or "v5litepod-16".

    Raises:
        InputError: there is none; the message names the nearest that exist.
    """
    found = re.fullmatch(r"(v\d\w*)-(\d+)", name)
    short = _ALIASES.get(found[1], found[1]) if found else ""
    if not found or short not in GENERATIONS:
        known = ", ".join(f"{key}-N" for key in GENERATIONS)
        raise errors.InputError(
            f"tpu: {name!r} is not a slice of Cloud TPU; give one of {known}"
        )
    generation, count = GENERATIONS[short], int(found[2])
    if count not in generation.shapes:
        below = [n for n in sorted(generation.shapes) if n < count][-1:]
        above = [n for n in sorted(generation.shapes) if n > count][:1]
        names = " and ".join(f"{found[1]}-{n}" for n in below + above)
        raise errors.InputError(f"tpu: there is no slice {name!r}; nearest: {names}")
    return Slice(
        name=name,
        generation=generation,
        topology=f"{short}:{generation.shapes[count]}",
        devices=count // generation.cores_per_device,
    )
