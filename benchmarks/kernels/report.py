"""The table for people and the JSON for the checks of the claims."""

import json
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from fmscale.kernels.launch import TRITON_VERSION

PEERS = ("liger-kernel", "flash-attn-4")
CHECKOUT = Path(__file__).resolve().parents[2]


def versions() -> dict[str, str | None]:
    """Versions of all software that makes or runs a kernel."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": TRITON_VERSION,
        "ptxas": ptxas_version(),
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "driver": driver_version(),
        **{package: _installed(package) for package in PEERS},
    }


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def driver_version() -> str | None:
    """Version of the GPU's driver, or None without a driver."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None


def ptxas_version() -> str | None:
    """Release of the assembler that Triton uses for Hopper, or None without Triton's NVIDIA backend."""
    try:
        from triton.backends.nvidia.compiler import get_ptxas
    except ImportError:
        return None
    found = get_ptxas(90)
    return str(getattr(found, "version", None) or found)


def machine() -> dict[str, Any]:
    """Machine and versions behind the figures."""
    found: dict[str, Any] = {"processor": platform.machine(), "gpu": None}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
        }
    return found


def commit() -> str | None:
    """The checkout's commit, or None outside a checkout."""
    asked = ["git", "-C", str(CHECKOUT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def result(claims: Sequence[dict[str, Any]], *, quick: bool, extra: dict[str, Any]) -> dict[str, Any]:
    """The whole result in the schema of every fmscale benchmark."""
    return {
        "name": "kernels", "quick": quick, "commit": commit(), "machine": machine(),
        "versions": versions(), **extra, "claims": list(claims),
    }  # fmt: skip


def write(path: Path, text: str) -> None:
    """Write a result file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def as_json(outcome: dict[str, Any]) -> str:
    """The result as JSON text."""
    return json.dumps(outcome, indent=1) + "\n"


VERDICTS = {True: "ok", False: "MISSED", None: "not decided"}


def table(outcome: dict[str, Any]) -> str:
    """Every claim with its rows: fmscale's rate, each peer's rate, share of the limit, verdicts and reasons."""
    lines = []
    for claim in outcome["claims"]:
        share = "" if claim["ratio"] is None else f", {claim['ratio']:.0%} of the limit"
        ours = "not measured" if claim["ours"] is None else f"{claim['ours']:.4g} {claim['unit']}{share}"
        lines.append(f"{claim['id']}: {ours}  [{VERDICTS[claim['ok']]}]")
        lines.append(f"    {claim['what']}; target {claim['target']}")
        if claim["aim"]:
            lines.append(f"    aim {claim['aim']}  [{VERDICTS[claim['aim_ok']]}]")
        for run in claim["runs"]:
            figures = [_figure(name, run) for name in run["rates"]]
            figures += [f"{name} {value:.3g}" for name, value in run["extra"].items()]
            lines.append(f"    {run['variant'] or 'run'}: " + ", ".join(figures or ["nothing measured"]))
            lines += [f"        {name}: {reason}" for name, reason in run["reasons"].items()]
        if not claim["runs"]:
            lines += [f"        {name}: {reason}" for name, reason in claim["reasons"].items()]
    return "\n".join(lines)


def _figure(name: str, run: dict[str, Any]) -> str:
    """Rate and, for a peer, the ratio of fmscale's rate to it."""
    rate, ours = run["rates"][name], run["rates"].get("ours")
    return f"{name} {rate:.4g}" + (f" ({ours / rate:.2f} x)" if ours and name != "ours" else "")
