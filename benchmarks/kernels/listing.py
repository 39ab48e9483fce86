"""`--list`: choices of `backend="auto"` on this machine, their measurements, and rejected configurations."""

import torch
from fmscale.kernels.dispatch import TUNED, device_name, tables
from fmscale.kernels.launch import TRITON_VERSION, triton_refusal

OPS = (
    "attention", "attention_decode", "rms_norm", "rope", "swiglu", "linear_cross_entropy", "adamw_step",
    "split_byte_planes",
)  # fmt: skip


def listing() -> str:
    """The choices as text."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name, default = device_name(device), "triton" if device.type == "cuda" else "eager"
    refusal = triton_refusal(device)
    lines = [
        f"device {name}, Triton {TRITON_VERSION}",
        f"default without a measured entry: {default}" + (f" ({refusal})" if refusal else ""),
    ]
    if device.type == "cuda":
        lines[-1] += "; attention: varlen where triton cannot serve documents"
    if device.type == "cpu":
        lines[-1] += "; attention: sdpa where it can do what is asked, else eager"
    here = [t for t in tables() if t.gpu == name and t.triton == TRITON_VERSION]
    entries = {(e.op, e.bucket): e for table in here for e in table.entries}
    for op in OPS:
        measured = [entry for (of, _), entry in entries.items() if of == op]
        if not measured:
            lines.append(f"  {op}: {default} (not measured on this device with this Triton)")
        for entry in measured:
            times = ", ".join(f"{backend} {ms:.4g} ms" for backend, ms in entry.milliseconds.items())
            lines.append(f"  {op}, {entry.bucket}: {entry.backend} ({times}) {dict(entry.configs)}")
    for table in here:
        lines += [
            f"  rejected: {r['op']}, {r['bucket']}, {r['kernel']} {r['config']}: {r['reason']} "
            f"(Triton {r['triton']}, ptxas {r['ptxas']})"
            for r in table.rejected
        ]
    others = [f"{t.gpu} with Triton {t.triton}" for t in tables() if t not in here]
    lines.append(f"tables in {TUNED}: " + (", ".join([*(t.gpu for t in here), *others]) or "none"))
    return "\n".join(lines)
