"""The compile gate refuses faulty kernels and no shipped kernel.

It compiles in separate processes, since this process may run under the interpreter, which cannot compile.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compile_gate import gate
from benchmarks.compile_gate.lint import lint, parsed

ROOT = Path(__file__).parents[2]
# The kernel that spills holds a large matrix in registers; the other multiplies 16 rows, too few for wgmma.
CASES = """
import json, sys
import triton, triton.language as tl
from dataclasses import asdict
from benchmarks.compile_gate.case import CompileCase
from benchmarks.compile_gate.gate import examine

@triton.jit
def product(A, B, C, ROWS: tl.constexpr, SIZE: tl.constexpr, DEPTH: tl.constexpr):
    line, column, inner = tl.arange(0, ROWS), tl.arange(0, SIZE), tl.arange(0, DEPTH)
    a = tl.load(A + line[:, None] * DEPTH + inner[None, :])
    b = tl.load(B + inner[:, None] * SIZE + column[None, :])
    tl.store(C + line[:, None] * SIZE + column[None, :], tl.dot(a, b))

def case(name, rows, size, depth, warps=4):
    return CompileCase(
        name=name, kernel=product, signature={"A": "*bf16", "B": "*bf16", "C": "*fp32"},
        constants={"ROWS": rows, "SIZE": size, "DEPTH": depth}, num_warps=warps, must_have_wgmma=True,
    )

cases = [case("good", 64, 64, 64), case("spills", 128, 256, 64), case("few rows", 16, 64, 64),
         case("shared", 128, 128, 1024, 8), case("broken", 65, 64, 64)]
json.dump({row.name: asdict(row) for row in map(examine, cases)}, sys.stdout)
"""


def compiled(script: Path) -> dict[str, Any]:
    """Output of the script, run with compiled kernels."""
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    variables["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, str(script)], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_it_refuses(tmp_path: Path) -> None:
    script = tmp_path / "cases.py"  # Triton reads a kernel's source from its file
    script.write_text(CASES)
    rows = compiled(script)
    assert rows["good"]["problems"] == []
    assert rows["good"]["wgmma"] > 0
    assert 0 < rows["good"]["registers"] <= 255
    assert any("spills" in problem for problem in rows["spills"]["problems"])
    assert rows["spills"]["spills"] > 0
    assert "no wgmma" in rows["few rows"]["problems"]
    assert any("shared memory" in problem for problem in rows["shared"]["problems"])
    assert any("does not compile" in problem for problem in rows["broken"]["problems"])


TURNED = """
#shared = #ttg.nvmma_shared<{swizzlingByteWidth = 128, transposed = false, elementBitWidth = 16}>
  %a = ttng.warp_group_dot %q, %k, %zero : !ttg.memdesc<64x64xbf16, #shared, #smem> -> tensor<64x64xf32, #mma>
  %p = arith.truncf %a : tensor<64x64xf32, #mma> to tensor<64x64xbf16, #mma>
  %t = tt.trans %p {order = array<i32: 1, 0>} : tensor<64x64xbf16, #mma> -> tensor<64x64xbf16, #linear>
  %s = ttg.local_alloc %t : (tensor<64x64xbf16, #linear>) -> !ttg.memdesc<64x64xbf16, #shared, #smem>
  %d = ttng.warp_group_dot %s, %v, %zero : !ttg.memdesc<64x64xbf16, #shared, #smem> -> tensor<64x64xf32, #mma>
"""


def test_the_lint_finds_a_transposed_product() -> None:
    assert "left operand" in lint(TURNED, "3.6.0")[0]
    assert len(lint(TURNED, "3.4.0")) == 1
    assert lint(TURNED, "3.7.1") == lint(TURNED, "3.3.1") == []
    straight = TURNED.replace("warp_group_dot %s", "warp_group_dot %p")
    assert lint(straight, "3.6.0") == []
    of_a_load = TURNED.replace("arith.truncf %a", "tt.load %a")
    assert lint(of_a_load, "3.6.0") == []


def test_the_lint_takes_names_where_they_are_used() -> None:
    """Sibling regions reuse names: a later harmless %s does not hide the faulty one."""
    later = TURNED + "  %t = tt.load %pointer\n  %s = ttg.local_alloc %t\n"
    assert len(lint(later, "3.6.0")) == 1


def test_the_lint_finds_narrow_rows() -> None:
    narrow = TURNED.replace("swizzlingByteWidth = 128", "swizzlingByteWidth = 64").replace("%s, %v", "%q, %v")
    assert "64 bytes" in lint(narrow, "3.7.1")[0]
    assert lint(narrow, "3.5.1") == []


def test_versions() -> None:
    assert parsed("3.7.1+git12ab") == (3, 7, 1)
    assert parsed("3.6.0") < (3, 7, 1) < parsed("3.10.0")


def test_the_default_attention_of_a_model_passes() -> None:
    """The short form: bf16, causal documents, head dim 128, under the installed Triton (3.9 spills some)."""
    report = gate.gate_with("", r"attention\.\w+ bf16 E128 documents causal \d")
    assert len(report["rows"]) >= 3
    assert all(row["wgmma"] > 0 for row in report["rows"])
    problems = [problem for row in report["rows"] for problem in row["problems"]]
    assert all("spills" in problem for problem in problems)
    assert report["triton"] not in gate.PAIRED or not problems


ONES = """
import json, sys
from dataclasses import asdict, replace
from benchmarks.compile_gate.gate import all_cases, examine

first = {case.kernel.__name__: case for case in reversed(all_cases())}
rows = []
for case in first.values():
    fixed = [p.name for p in case.kernel.made.params if p.do_not_specialize]
    ones = {name: 1 for name, kind in case.signature.items() if kind == "i32" and name not in fixed}
    kept = {name: kind for name, kind in case.signature.items() if name not in ones}
    rows.append(examine(replace(case, signature=kept, constants={**case.constants, **ones})))
json.dump({row.name: asdict(row) for row in rows}, sys.stdout)
"""


@pytest.mark.slow
def test_arguments_of_one(tmp_path: Path) -> None:
    """Triton makes an integer argument of 1 (one head, one row) a constant, which not every expression takes."""
    script = tmp_path / "ones.py"
    script.write_text(ONES)
    rows = compiled(script)
    assert len(rows) >= 15
    assert {name: row["problems"] for name, row in rows.items() if row["problems"]} == {}


@pytest.mark.slow
@pytest.mark.parametrize("version", gate.PAIRED)
def test_every_shipped_configuration_passes(version: str) -> None:
    report = gate.gate_with(version, jobs=2)
    names = [case.name for case in gate.all_cases()]
    assert [row["name"] for row in report["rows"]] == names
    assert {row["name"]: row["problems"] for row in report["rows"] if row["problems"]} == {}


def test_the_committed_table_is_of_what_ships() -> None:
    """Registers, spills, shared memory and wgmma of every case, for every Triton version.

    The versions in PAIRED refuse no case; under newer versions some cases may spill, which still runs, but nothing
    worse.
    """
    result = json.loads(gate.RESULTS.read_text())
    assert set(gate.PAIRED) <= {report["triton"] for report in result["reports"]}
    names = [case.name for case in gate.all_cases()]
    for report in result["reports"]:
        assert [row["name"] for row in report["rows"]] == names, "run `python -m benchmarks.compile_gate.gate`"
        refused = {row["name"]: row["problems"] for row in report["rows"] if row["problems"]}
        if report["triton"] in gate.PAIRED:
            assert refused == {}
        assert all("spills" in problem for problems in refused.values() for problem in problems)


def test_every_kernel_has_a_case() -> None:
    """A new kernel cannot be forgotten: each jitted function with a program id is compiled by some case."""
    compiled_names = {case.kernel.__name__ for case in gate.all_cases()}
    launched = set()
    for path in (ROOT / "kernels").rglob("*.py"):
        for block in path.read_text().split("\n@")[1:]:
            if "tl.program_id" in block and block.startswith(("jit", "sized")):
                launched.add(block.split("def ")[1].split("(")[0])
    assert launched
    assert launched <= compiled_names
