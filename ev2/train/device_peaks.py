"""Peak arithmetic of accelerators, by which model FLOPs utilization is measured."""

# Dense bfloat16 FLOP/s of a JAX device, by its kind. On v2 and v3 a device is a
# TensorCore, half of a chip. Source: Cloud TPU's page on each generation.
TPU_FLOPS_PER_SECOND = {
    "TPU v2": 46e12 / 2,
    "TPU v3": 123e12 / 2,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}
# The same of GPUs, by the beginning of the kind. Source: NVIDIA's data sheets.
_GPU_FLOPS_PER_SECOND = {
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "Tesla V100": 125e12,  # float16: it has no bfloat16
}


def peak_flops_per_second(device_kind: str) -> float | None:
    """Returns the bfloat16 peak of one device; None if unknown, as for CPUs."""
    if device_kind in TPU_FLOPS_PER_SECOND:
        return TPU_FLOPS_PER_SECOND[device_kind]
    for kind, peak in _GPU_FLOPS_PER_SECOND.items():
        if device_kind.startswith(kind):
            return peak
    return None
