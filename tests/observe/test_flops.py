"""The devices' peaks and the share of them that is used."""

import pytest

from megacpt.observe.flops import mfu, peak_flops_per_second

LLAMA_3_8B_FLOPS_PER_TOKEN = 51.47e9


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L4", 121e12),
        ("AMD Instinct MI300X", 1307e12),
        ("A device of tomorrow", None),
    ],
)
def test_peaks_by_device_name(name: str, peak: float | None) -> None:
    assert peak_flops_per_second(name) == peak


def test_mfu_is_a_fraction_of_all_devices_together() -> None:
    flops = LLAMA_3_8B_FLOPS_PER_TOKEN
    assert mfu(8 * 8_650, flops, "NVIDIA H100 80GB HBM3", num_devices=8) == pytest.approx(0.45, abs=0.001)
    assert mfu(100.0, flops, "Some CPU", num_devices=1) is None
