import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("kernels", "benchmarks/kernels", "benchmarks/compile_gate")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
OURS = ("fmscale.kernels", "fmscale.errors", "benchmarks.kernels", "benchmarks.compile_gate")


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def imported_by(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"relative import of {node.module}"
        return {node.module or ""}
    return set()


def imported(path: Path) -> set[str]:
    return set().union(*(imported_by(node) for node in nodes(path)))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_standard_library_torch_and_triton(path: Path) -> None:
    for name in imported(path):
        allowed = name.split(".")[0] in {*sys.stdlib_module_names, "torch", "triton"}
        allowed = allowed or any(name == own or name.startswith(own + ".") for own in OURS)
        assert allowed, f"{path.name} imports {name}"


def test_the_tests_too_run_where_only_torch_triton_and_pytest_are() -> None:
    """For a borrowed GPU machine: tests import other packages only after their skip marker."""
    for path in (ROOT / "tests" / "conftest.py", *(ROOT / "tests" / "kernels").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            for name in imported_by(node):
                # numpy: of the interpreter; hypothesis: conftest.py stands in for it
                allowed = {*sys.stdlib_module_names, "torch", "triton", "pytest", "numpy", "hypothesis"}
                ours = any(name == own or name.startswith(own + ".") for own in (*OURS, "tests.kernels"))
                assert ours or name.split(".")[0] in allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_atomics(path: Path) -> None:
    """The order of atomics changes from run to run: without them every result is deterministic by construction."""
    calls = [n for n in nodes(path) if isinstance(n, ast.Attribute)]
    assert not [n.attr for n in calls if n.attr.startswith("atomic_")]


BARE = """
import sys
sys.modules["triton"] = None  # as where it is not installed
import torch
from fmscale.errors import KernelError
from fmscale.kernels import (
    adamw_step, attention_decode, flash_attention, linear_cross_entropy, merge_byte_planes, rms_norm, rope,
    split_byte_planes, swiglu,
)
x = torch.randn(4, 8, requires_grad=True)
cu = torch.tensor([0, 1, 4])
for settings in ({}, {"window": 2, "softcap": 3.0, "sinks": torch.zeros(2)}):
    flash_attention(x.view(4, 2, 4), x.view(4, 2, 4), x.view(4, 2, 4), cu_seqlens=cu, **settings).sum().backward()
    attention_decode(*(torch.randn(3, 5, 2, 4) for _ in range(3)), torch.tensor([5, 0, 2]), **settings)
rms_norm(x, torch.ones(8)).sum().backward()
swiglu(x, x).sum().backward()
linear_cross_entropy(x, torch.randn(9, 8), torch.arange(4))[0].backward()
rope(torch.randn(4, 2, 8), torch.randn(4, 1, 8), torch.arange(4))
adamw_step(*(torch.rand(5) for _ in range(4)), lr=1e-3, step=1)
assert torch.equal(merge_byte_planes(split_byte_planes(x), x.dtype, x.shape), x)
try:
    swiglu(x, x, backend="triton")
except KernelError as error:
    assert "triton is not installed" in str(error) and "eager" in error.remedy, error
else:
    raise AssertionError("no error")
"""


def test_without_triton_every_op_runs_in_eager() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_on_a_cpu_triton_stays_unimported() -> None:
    """The import takes 67 MB, which every training process on a CPU would hold."""
    code = "import sys, torch; from fmscale.kernels import swiglu; swiglu(torch.ones(2), torch.ones(2))"
    code += "; assert 'triton' not in sys.modules"
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr


UNCORRECTED = """
import torch
from fmscale.errors import KernelError
from fmscale.kernels import adamw_step, attention_decode, flash_attention, linear_cross_entropy, rms_norm, rope, swiglu

def calls(dtype):
    x, heads, cache = (torch.ones(shape, dtype=dtype) for shape in ((4, 8), (4, 2, 4), (3, 5, 2, 4)))
    master = [torch.ones(8) for _ in range(4)]
    how = {"backend": "triton"}
    yield lambda: swiglu(x, x, **how)
    yield lambda: flash_attention(heads, heads, heads, cu_seqlens=torch.tensor([0, 1, 4]), **how)
    yield lambda: attention_decode(cache, cache, cache, torch.tensor([5, 0, 2]), **how)
    yield lambda: rms_norm(x, x[0], **how)
    yield lambda: linear_cross_entropy(x, x, torch.arange(4) % 4, **how)
    yield lambda: rope(heads, heads, torch.arange(4), **how)
    yield lambda: adamw_step(*master, copy=x[0], lr=1e-3, step=1, **how)

for call in calls(torch.bfloat16):
    try:
        call()
    except KernelError as error:
        assert "under TRITON_INTERPRET=1 its products are garbage" in str(error), error
        assert error.remedy.startswith("Use backend="), error
    else:
        raise AssertionError("no error")
next(calls(torch.float32))()
assert swiglu(torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16))[0] > 0
"""


def test_the_interpreter_alone_is_refused_in_bf16() -> None:
    """Outside these tests nothing corrects it: a run would train on garbage, with a loss that looks right."""
    variables = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", UNCORRECTED], capture_output=True, text=True, env=variables, cwd=ROOT)
    assert done.returncode == 0, done.stderr
