"""FLOPs per token against published figures, and the devices' peaks."""

import pytest

from megacpt.observe.flops import flops_per_token, mfu, peak_flops_per_second

LLAMA_3_8B = {
    "num_matmul_parameters": 8_030_261_248 - 128_256 * 4096,
    "num_layers": 32,
    "attention_width": 4096,
    "sequence_length": 8192,
}


def test_llama_3_8b_at_8192_tokens() -> None:
    """NVIDIA reports 744 TFLOP/s per device at 14,451 tokens/s for this model and length."""
    assert flops_per_token(**LLAMA_3_8B) == pytest.approx(51.47e9, rel=1e-3)
    assert flops_per_token(**LLAMA_3_8B) * 14_451 == pytest.approx(744e12, rel=1e-3)


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
    flops = flops_per_token(**LLAMA_3_8B)
    assert mfu(8 * 8_650, flops, "NVIDIA H100 80GB HBM3", num_devices=8) == pytest.approx(0.45, abs=0.001)
    assert mfu(100.0, flops, "Some CPU", num_devices=1) is None
