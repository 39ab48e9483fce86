"""GPUs and the software that a rank needs: communication, kernels, compilers, DeepSpeed's extension, MPI."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from importlib import metadata, util
from pathlib import Path

from fmscale import __version__
from fmscale.train.machine.finding import Finding

DRIVER = Path("/proc/driver/nvidia/version")
PROGRAM = '#include <Python.h>\n#include <omp.h>\nextern "C" int threads() { return omp_get_max_threads(); }\n'


def software_findings(cache: Path) -> list[Finding]:
    """All findings of this file; `cache` keeps the result of the kernels' self-test."""
    return [*gpus(), communication(), *check_kernels(cache), compiler(), cpu_adam(), mpi()]


def gpus() -> list[Finding]:
    """torch's build, and each GPU that it can use."""
    import torch

    driver = DRIVER.read_text().partition("\n")[0] if DRIVER.exists() else ""
    found = f"fmscale {__version__}, torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if driver and not count:
        remedy = "Install a CUDA build of torch that this driver supports, and look at CUDA_VISIBLE_DEVICES."
        found = f"{found}; a driver is here ({driver}), and torch can use no GPU"
        return [Finding(name="torch", status="fail", found=found, remedy=remedy)]
    if not count:
        return [Finding(name="torch", status="ok", found=f"{found}; no GPU: runs train on the CPU")]
    rows = [Finding(name="torch", status="ok", found=f"{found}; {driver or 'driver unknown'}")]
    for number in range(count):
        free, total = torch.cuda.mem_get_info(number)
        text = f"{torch.cuda.get_device_name(number)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        row = Finding(name=f"GPU {number}", status="ok", found=text)
        if free < 0.9 * total:
            row = replace(row, status="warn", remedy="Another process has memory there: nvidia-smi shows it.")
        rows.append(row)
    return rows


def communication() -> Finding:
    """gloo for the host, NCCL between GPUs."""
    import torch
    from torch import distributed

    gloo, nccl = distributed.is_gloo_available(), distributed.is_nccl_available()
    version = ".".join(map(str, torch.cuda.nccl.version())) if nccl and torch.version.cuda else "not in this torch"
    found = f"gloo {'is there' if gloo else 'is missing'}, NCCL {version}"
    if not gloo or (torch.cuda.is_available() and not nccl):
        remedy = "Install torch's own wheel: pip install --force-reinstall torch."
        return Finding(name="communication", status="fail", found=found, remedy=remedy)
    return Finding(name="communication", status="ok", found=found)


def check_kernels(cache: Path) -> list[Finding]:
    """Each Triton kernel against its eager form, once for these versions and this GPU."""
    import torch

    if not torch.cuda.is_available():
        found = "without a GPU every kernel runs its eager form; tests/kernels runs them under Triton's interpreter"
        return [Finding(name="kernels", status="skip", found=found)]
    from fmscale.kernels.launch import TRITON_VERSION
    from fmscale.kernels.selftest import TOLERANCE, compare, source_digest

    key = " ".join((torch.cuda.get_device_name(), torch.__version__, TRITON_VERSION, source_digest()))
    errors = read_results(cache, key)
    before = " (of an earlier examination)" if errors else ""
    if not errors:
        errors = dict(compare(torch.device("cuda"), torch.bfloat16))
        write_results(cache, key, errors)
    return [judge(name, error, TOLERANCE[torch.bfloat16], before) for name, error in errors.items()]


def judge(op: str, error: float | str, most: float, before: str = "") -> Finding:
    """Finding for an op with its relative error, or with the reason why it did not run."""
    if isinstance(error, str):
        found = error
    elif error <= most:
        return Finding(name=f"kernel {op}", status="ok", found=f"differs from eager by {error:.1e}{before}")
    else:
        found = f"differs from eager by {error:.1e}{before}, at most {most:.0e} is right"
    remedy = "Do not train with it: take another Triton, or another model.attention_backend, and report it."
    return Finding(name=f"kernel {op}", status="fail", found=found, remedy=remedy)


def read_results(cache: Path, key: str) -> dict[str, float | str]:
    """Results of an earlier self-test for the same versions, GPU and sources; empty if there are none."""
    try:
        kept = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    results = kept.get("results") if isinstance(kept, dict) and kept.get("key") == key else None
    return results if isinstance(results, dict) else {}


def write_results(cache: Path, key: str, errors: dict[str, float | str]) -> None:
    """Keep the results, unless an op could not run: the next examination tries it again."""
    if any(isinstance(error, str) for error in errors.values()):
        return
    cache.parent.mkdir(parents=True, exist_ok=True)
    beside = cache.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps({"key": key, "results": errors}))
    beside.replace(cache)


def compiler() -> Finding:
    """A C++ compiler with Python's and OpenMP's headers: Triton and DeepSpeed's CPU Adam compile with it."""
    import sysconfig

    remedy = "apt-get install g++ python3-dev: Triton's launchers on a GPU, and train.offload_optimizer, need them."
    program = shutil.which("g++") or shutil.which("c++")
    if program is None:
        return Finding(name="compiler", status="warn", found="there is no g++", remedy=remedy)
    command = [program, "-fopenmp", "-fsyntax-only", "-I", sysconfig.get_path("include"), "-x", "c++", "-"]
    done = subprocess.run(command, input=PROGRAM, capture_output=True, text=True, timeout=60)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line]
        return Finding(name="compiler", status="warn", found=(lines or ["it fails"])[0], remedy=remedy)
    return Finding(name="compiler", status="ok", found=program)


def cpu_adam() -> Finding:
    """DeepSpeed, and its optimizer for `train.offload_optimizer`, which compiles at its first use."""
    from torch.utils import cpp_extension

    found = f"deepspeed {metadata.version('deepspeed')}"
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    built = "compiled" if any(root.glob("**/cpu_adam/cpu_adam.so")) else "not compiled yet: a minute at its first use"
    return Finding(name="CPU Adam", status="ok", found=f"{found}; CPU Adam {built}")


def mpi() -> Finding:
    """mpirun and mpi4py, which only launches by mpirun and ingests of several nodes need."""
    program = shutil.which("mpirun")
    bound = metadata.version("mpi4py") if util.find_spec("mpi4py") else "none"
    return Finding(name="MPI", status="ok", found=f"mpirun: {program or 'none'}, mpi4py: {bound}")
