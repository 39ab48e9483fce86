"""Peak dense bf16 rates of devices, from their data sheets: the denominator of `mfu`.

mfu = (3 x forward FLOPs a token, attention counted causal, recompute not counted) x tokens/s a device / peak.
An unknown device gets no percentage.
"""

PEAKS = {
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "L4": 121e12,
    "MI300X": 1307e12,
}
"""Part of the name that the driver gives -> FLOP/s; the first match counts."""


def peak_flops(device_name: str) -> float | None:
    """Peak of a device, or None for an unknown device."""
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)
