"""Compile every shipped configuration of every kernel for sm_90, without a GPU, and judge the result.

    python -m benchmarks.compile_gate.gate                     the installed Triton
    python -m benchmarks.compile_gate.gate --triton 3.6.0 3.7.1   these, each in its own environment

Refused: register spills, more shared memory than a Hopper block has, a matrix product without wgmma where one is
promised, and code shapes known to be miscompiled (`lint`). The table goes to benchmarks/results/kernels_compile.json.
Must run in a process without TRITON_INTERPRET=1.
"""

import argparse
import concurrent.futures
import importlib
import json
import os
import pkgutil
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from fmscale.kernels.launch import Kernel

import benchmarks.compile_gate.cases
from benchmarks.compile_gate.case import CompileCase
from benchmarks.compile_gate.lint import lint

SHARED_LIMIT = 227 * 1024
"""Shared memory that one block may have on sm_90, in bytes."""
TARGET = ("cuda", 90, 32)
PAIRED = ("3.6.0", "3.7.1")
"""Triton of torch 2.11 and of torch 2.13, where nothing may be refused. The table lists refusals of newer versions."""
CHECKOUT = Path(__file__).resolve().parents[2]
RESULTS = CHECKOUT / "benchmarks" / "results" / "kernels_compile.json"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fmscale"


@dataclass(frozen=True, kw_only=True)
class GateRow:
    """Result of compiling one case."""

    name: str
    """The case's name."""
    registers: int
    """Registers per thread, at most 255."""
    spills: int
    """Bytes of registers stored to local memory, per thread."""
    shared: int
    """Shared memory per block, in bytes."""
    wgmma: int
    """Warpgroup matrix instructions in the PTX."""
    warps: int
    """Warps per block."""
    seconds: float
    """Time to compile, or to read Triton's cache."""
    problems: tuple[str, ...]
    """Reasons why the configuration may not ship; empty where it may."""


def all_cases() -> list[CompileCase]:
    """The cases of every op."""
    cases: list[CompileCase] = []
    for module in sorted(module.name for module in pkgutil.iter_modules(benchmarks.compile_gate.cases.__path__)):
        cases += importlib.import_module(f"benchmarks.compile_gate.cases.{module}").compile_cases()
    names = [case.name for case in cases]
    doubled = sorted({name for name in names if names.count(name) > 1})
    assert not doubled, f"case names must be unique: {doubled}"
    return cases


def examine(case: CompileCase) -> GateRow:
    """Compile one case and judge it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = case.kernel.made if isinstance(case.kernel, Kernel) else case.kernel
    names = list(kernel.arg_names)
    missing = set(names) - set(case.signature) - set(case.constants)
    assert not missing, f"{case.name}: no type or value for {sorted(missing)}"
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = [
        (index,)
        for index, name in enumerate(names)
        if signature[name] != "constexpr" and signature[name][:2] != "fp" and name not in case.unaligned
    ]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in case.constants.items()},
        attrs={index: [["tt.divisibility", 16]] for index in aligned},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    begin = time.perf_counter()
    try:
        compiled = triton.compile(source, target=GPUTarget(*TARGET), options=options)
    except Exception as error:
        seconds = time.perf_counter() - begin
        reason = f"does not compile: {type(error).__name__}: {' '.join(str(error).split())[-300:]}"
        return GateRow(
            name=case.name, registers=0, spills=0, shared=0, wgmma=0, warps=case.num_warps,
            seconds=round(seconds, 2), problems=(reason,),
        )  # fmt: skip
    seconds = time.perf_counter() - begin
    registers, spills = _registers(compiled.asm["cubin"], compiled.asm["ptx"])
    shared = int(compiled.metadata.shared)
    wgmma = compiled.asm["ptx"].count("wgmma.mma_async")
    problems = lint(compiled.asm["ttgir"], str(triton.__version__))
    if spills:
        problems.append(f"spills {spills} bytes")
    if shared > SHARED_LIMIT:
        problems.append(f"{shared} bytes of shared memory (limit {SHARED_LIMIT})")
    if case.must_have_wgmma and not wgmma:
        problems.append("no wgmma")
    if case.must_have_wgmma and "mma.sync" in compiled.asm["ptx"]:
        problems.append("a matrix product without wgmma")
    return GateRow(
        name=case.name, registers=registers, spills=spills, shared=shared, wgmma=wgmma,
        warps=case.num_warps, seconds=round(seconds, 2), problems=tuple(problems),
    )  # fmt: skip


def _registers(cubin: bytes, ptx: str) -> tuple[int, int]:
    """(registers, spilled bytes) per thread; for a kernel with a stack frame, `ptxas -v` gives the spilled bytes."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool(triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
    frame = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert frame is not None, usage
    if frame[2] == "0":
        return int(frame[1]), 0
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as text:
        text.write(ptx)
        text.flush()
        output = _tool(get_ptxas(90).path, "-v", "--gpu-name=sm_90a", text.name, "-o", os.devnull)
    stores = re.search(r"(\d+) bytes spill stores", output)
    # a stack frame without spills takes local memory too
    return int(frame[1]), max(int(stores[1]) if stores else 0, int(frame[2]))


def _tool(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stdout + result.stderr


def _by_name(name: str) -> GateRow:
    return examine(next(case for case in all_cases() if case.name == name))


def gate(pattern: str = "", jobs: int = 1) -> dict[str, Any]:
    """Examine the cases whose name matches the regular expression, under the Triton of this process."""
    import triton
    from triton.backends.nvidia.compiler import get_ptxas

    names = [case.name for case in all_cases() if re.search(pattern, case.name)]
    if jobs > 1:
        with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
            rows = list(pool.map(_by_name, names))
    else:
        rows = [_by_name(name) for name in names]
    return {
        "triton": str(triton.__version__),
        "ptxas": get_ptxas(90).version,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "rows": [asdict(row) for row in rows],
    }


def environment(version: str) -> Path:
    """Folder of Triton `version`, installed on first use; first on PYTHONPATH, it replaces the installed Triton."""
    folder = CACHE / f"triton-{version}"
    if (folder / "triton" / "__init__.py").is_file():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        target = Path(scratch) / "packages"
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
        subprocess.run([*pip, f"triton=={version}"], check=True)
        target.rename(folder)
    return folder


def gate_with(version: str, pattern: str = "", jobs: int = 1) -> dict[str, Any]:
    """`gate` in a process of its own under Triton `version`; "" is the installed version."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(CHECKOUT), *filter(None, [variables.get("PYTHONPATH")])]
    if version:
        paths.insert(0, str(environment(version)))
    variables["PYTHONPATH"] = os.pathsep.join(paths)
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.compile_gate.gate", "--rows", str(rows)]
        command += ["--only", pattern, "--jobs", str(jobs)]
        subprocess.run(command, check=True, env=variables, cwd=scratch)
        report: dict[str, Any] = json.loads(rows.read_text())
    assert not version or report["triton"] == version, (version, report["triton"])
    return report


def table(reports: Sequence[dict[str, Any]]) -> str:
    """The rows as text, one line each."""
    lines = []
    for report in reports:
        rows = report["rows"]
        lines.append(f"triton {report['triton']}, ptxas {report['ptxas']}: {len(rows)} configurations")
        lines += [
            f"  {row['name']:<76} {row['registers']:>4} reg {row['spills']:>4} spill {row['shared']:>7} B "
            f"{row['wgmma']:>3} wgmma  {'; '.join(row['problems'])}"
            for row in rows
        ]
        refused = sum(bool(row["problems"]) for row in rows)
        lines.append(f"  refused: {refused} of {len(rows)}")
    return "\n".join(lines)


def write(reports: Sequence[dict[str, Any]], path: Path = RESULTS) -> None:
    """Write the table as a benchmark result."""
    paired = [report for report in reports if report["triton"] in PAIRED]
    refused = sum(bool(row["problems"]) for report in paired for row in report["rows"])
    commit = _tool("git", "-C", str(CHECKOUT), "rev-parse", "HEAD").strip()
    claim = {
        "id": "kernels.compile", "what": f"configurations refused for sm_90 by Triton {' or '.join(PAIRED)}",
        "unit": "configurations", "ours": refused, "target": "= 0", "ok": refused == 0,
    }  # fmt: skip
    result = {
        "name": "kernels_compile", "quick": False, "commit": commit, "target": "sm_90",
        "machine": {"gpu": None}, "claims": [claim], "reports": list(reports),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. Returns 1 when a configuration is refused."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_gate.gate", description=__doc__)
    parser.add_argument("--triton", nargs="+", default=[""], help="versions; default: the installed one")
    parser.add_argument("--only", default="", help="regular expression over case names; writes no result file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rows:
        options.rows.write_text(json.dumps(gate(options.only, options.jobs)))
        return 0
    reports = [gate_with(version, options.only, options.jobs) for version in options.triton]
    print(table(reports))
    if not options.only:
        write(reports)
    return int(any(row["problems"] for report in reports for row in report["rows"]))


if __name__ == "__main__":
    sys.exit(main())
