"""Model FLOP/s utilisation: how much of the devices' peak the model's own arithmetic uses.

Recomputed activations do not count as work (that would be hardware utilisation), attention counts as causal, and the
peak is the data sheet's dense bf16 rate. Figures that count attention as if it were not causal come out 13 % higher
for Llama-3-8B at 8192 tokens: compare like with like.
"""

from __future__ import annotations

# Dense bf16 FLOP/s by a part of the device's name; the first that matches counts, so special cases come first.
# Data sheets print the rate with 2:4 sparsity for Hopper and later, which is twice the dense one.
_PEAK_FLOPS_PER_SECOND = (
    ("H100 PCIe", 756e12),  # NVIDIA H100 Tensor Core GPU data sheet: 1,513 TFLOP/s sparse
    ("H100 NVL", 835e12),  # same: 1,671 sparse
    ("H100", 989e12),  # same, SXM5: 1,979 sparse
    ("GH200", 989e12),  # NVIDIA GH200 Grace Hopper Superchip data sheet: 1,979 sparse
    ("H200 NVL", 835e12),  # NVIDIA H200 Tensor Core GPU data sheet: 1,671 sparse
    ("H200", 989e12),  # same, SXM5: 1,979 sparse
    ("H800", 989e12),  # an H100 SXM5 with narrower links
    ("H20", 148e12),  # NVIDIA H20 data sheet
    ("GB200", 2500e12),  # NVIDIA GB200 NVL72 data sheet: 360 PFLOP/s sparse over 72
    ("B200", 2250e12),  # NVIDIA DGX B200 data sheet: 36 PFLOP/s sparse over 8
    ("A100", 312e12),  # NVIDIA A100 Tensor Core GPU data sheet, SXM and PCIe
    ("A800", 312e12),  # an A100 with narrower links
    ("L40S", 362e12),  # NVIDIA L40S data sheet: 733 sparse
    ("L40", 181e12),  # NVIDIA L40 data sheet: 362 sparse
    ("L4", 121e12),  # NVIDIA L4 data sheet: 242 sparse
    ("MI300X", 1307e12),  # AMD Instinct MI300X data sheet
    ("MI325X", 1307e12),  # AMD Instinct MI325X data sheet
    ("MI250X", 191.5e12),  # AMD Instinct MI250X data sheet: 383 for the two dies, which are two devices
)


def peak_flops_per_second(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device as `torch.cuda.get_device_name` calls it; None if it is not in the table."""
    return next((peak for part, peak in _PEAK_FLOPS_PER_SECOND if part in device_name), None)


def mfu(tokens_per_second: float, flops_per_token: float, device_name: str, num_devices: int) -> float | None:
    """Model FLOP/s utilisation, 0 to 1; None if the device's peak is not known.

    Args:
        tokens_per_second: of all devices together.
        flops_per_token: of training, forward and backward, attention counted as causal.
        device_name: as `torch.cuda.get_device_name` gives it.
        num_devices: devices in the run.
    """
    peak = peak_flops_per_second(device_name)
    return None if peak is None else tokens_per_second * flops_per_token / (num_devices * peak)
