"""python -m pytest tests/train/test_device_peaks.py"""

import pytest

from ev2.train import device_peaks


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v3", 61.5e12),
        ("TPU v5 lite", 197e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("TPU v5", 459e12),
        ("cpu", None),
    ],
)
def test_peak_of_a_device(kind, peak):
    assert device_peaks.peak_flops_per_second(kind) == peak
