"""Results of `fmscale bench --read`: failed claims, refused files, README's table."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_hour.device_use import STEP, device_use
from benchmarks.gpu_hour.journal import FORMAT, FORMAT_VERSION, RESULTS, Journal
from benchmarks.gpu_hour.reading import Reading, keep, read
from benchmarks.gpu_hour.source import git
from benchmarks.gpu_hour.table import BEGIN, END, NOTHING, as_markdown, fill
from fmscale.errors import ConfigError, FormatError

LOSSES = [9.0, 8.5, 8.0]
GPU = {"about": "versions", "versions": {"torch": "2.11.0", "triton": "3.6.0"}, "gpu": "NVIDIA H200"}


def small(**other: Any) -> dict[str, Any]:
    """Records of a small run."""
    kind = {"device": "cuda", "compile": False, "recompute": "none", "losses": LOSSES, "graphs": 0, **other}
    return {
        "settings": {name: kind[name] for name in ("device", "compile", "recompute")} | {"steps": 3},
        "steps": {"steps": [{"loss": one, "grad_norm": 1.0} for one in kind["losses"]]},
        "end": {"order_hash": "abc", "extensions": [], "unique_graphs": kind["graphs"], "graph_breaks": 0},
    }


def large(rate: float) -> dict[str, Any]:
    """Records of the large run: 60 steps at this many tokens/s."""
    step = {
        "tokens": 65_536,
        "seconds": 65_536 / rate,
        "data_stall": 0.0,
        "tokens_per_second": rate,
        "mfu": 0.4,
    }
    return {
        "settings": {"steps": 60},
        "stepped": {"allocated_bytes": 26e9, "planned_bytes": 25.9e9},
        "steps": {"steps": [step] * 60},
        "save": {"state": "acknowledged", "saved_step": 20, "blocking_seconds": 0.01},
        "end": {"peak_bytes": 60e9, "extensions": []},
    }


def fast(rate: float, **profile: Any) -> dict[str, Any]:
    """Records of the run of 124 M parameters."""
    found = {"waits": 2.0, "pageable_copies": 0.0, "boundary_seconds": 0.004, **profile}
    return {**large(rate), "end": {"profile": found, "extensions": []}}


def numbered(last: float, first: int = 1) -> list[dict[str, Any]]:
    """The steps of a run from a given step to the third."""
    losses = [9.0, 8.5, last]
    return [{"step": n, "loss": losses[n - 1], "grad_norm": 1.0} for n in range(first, 4)]


def killed(last: float, first: int = 2) -> dict[str, Any]:
    """Records of a run that was killed behind step 2 and went on from `first`."""
    again = {"steps": numbered(last, first)}
    return {"steps": [{"steps": numbered(8.0)[:2]}, again], "end": {"extensions": []}}


def pages(**other: Any) -> dict[str, Any]:
    """Records of the memory pages."""
    plain = {"mib": 4096, "register_seconds": 0.8, "registered_gb_per_second": 50.0, "pageable_gb_per_second": 10.0}
    kinds = [{"huge": huge, "next_kernel": "", **plain, **other} for huge in (False, True)]
    return {"pages": kinds, "end": {"extensions": []}}


RUNS: dict[tuple[str, str], dict[str, Any]] = {
    ("3", "whole"): {"steps": {"steps": numbered(8.0)}, "end": {"extensions": []}},
    ("3", "killed"): killed(8.0),
    ("4", "pages"): pages(),
    ("5", "124m-compiled"): fast(350_000.0),
    ("5", "124m-eager"): fast(300_000.0),
    ("8", "h200-recompute"): {**large(40_000.0), "end": {"peak_bytes": 50e9, "extensions": []}},
    ("1", "cpu"): small(device="cpu"),
    ("1", "cuda"): small(),
    ("2", "plain"): small(),
    ("2", "full"): small(compile=True, recompute="full", graphs=2),
    ("2", "full-again"): small(compile=True, recompute="full", graphs=2),
    ("6", "h200"): large(50_000.0),
}


def write(folder: Path, runs: dict[tuple[str, str], dict[str, Any]], **begin: Any) -> Path:
    """The records of an hour with these runs, as the driver writes them."""
    journal = Journal(folder)
    told = {"format": FORMAT, "format_version": FORMAT_VERSION, "mode": "train", "dry_run": False} | begin
    journal.record(
        "begin", **{"seconds": 540.0, "steps": list("01265348"), "machine": {"cores": 16}, "code": ""}
        | {"commit": git("rev-parse", "HEAD"), "changed": False} | told,
    )  # fmt: skip
    device = begin.get("versions", GPU)
    import_ = {"about": "deepspeed", "import_seconds": 2.0}
    for found in (device, import_):
        journal.record("found", step="0", job="prepare", found=found)
    journal.record("step", step="0", ok=True, seconds=1.0, reason="")
    for step in dict.fromkeys(of for of, _ in runs):
        for (of, job), given in runs.items():
            for about, values in given.items() if of == step else ():
                for one in values if isinstance(values, list) else [values]:
                    journal.record("found", step=step, job=job, found={"about": about, **one})
            if of == step:
                journal.record("job", step=step, job=job, ok="end" in given, seconds=1.0, reason="exit 1\nboom")
        journal.record("step", step=step, ok=True, seconds=1.0, reason="")
    journal.record("end", ok=True, reason="", seconds=4.0)
    journal.close()
    return folder


def claims(reading: Reading) -> dict[str, dict[str, Any]]:
    return {claim["id"]: claim for claim in reading.document["claims"]}


def test_an_hour_that_came_out_meets_its_claims(tmp_path: Path) -> None:
    reading = read(write(tmp_path, RUNS))
    found = claims(reading)
    assert reading.notes == []
    assert reading.document["machine"] == {"cores": 16, "gpu": "NVIDIA H200"}
    assert found["T3.h200"]["ours"] == pytest.approx(50_000)
    assert {id for id, claim in found.items() if not claim["ok"]} == {"T3.later_saves"}
    assert found["T3.later_saves"]["ours"] is None


@pytest.mark.parametrize(
    ("run", "given", "claim"),
    [
        (("1", "cuda"), small(losses=[9.0 * (1 + 2e-5), 8.5, 8.0]), "G1.first_loss"),
        (("1", "cuda"), small(losses=[9.0, 8.5, 8.0 * (1 + 2e-3)]), "G1.last_loss"),
        (("1", "cuda"), {**small(), "end": {**small()["end"], "order_hash": "abd"}}, "G1.order"),
        (("2", "full"), small(compile=True, recompute="full", losses=[9.0, 8.5, 8.1], graphs=2), "G2.repeat"),
        (("2", "full"), small(compile=True, recompute="full", graphs=0), "G2.recompute"),
        (("2", "full"), small(compile=True, recompute="full", graphs=3), "G2.graphs"),
        (("2", "full"), small(losses=[9.1, 8.5, 8.0], graphs=2), "G2.first_loss"),
        (("6", "h200"), large(40_000.0), "T3.h200"),
        (("3", "killed"), killed(8.1), "G3.kill"),
        (("3", "killed"), killed(8.0, first=3), "G3.kill"),  # no step was repeated: not the run that was asked for
        (("4", "pages"), pages(register_seconds=3.0), "G4.register"),
        (("4", "pages"), pages(registered_gb_per_second=12.0), "G4.copy"),
        (("4", "pages"), pages(next_kernel="error 712"), "G4.refused"),
        (("5", "124m-compiled"), fast(250_000.0), "G5.tokens"),
        (("5", "124m-compiled"), fast(250_000.0), "G5.compile"),
        (("5", "124m-compiled"), fast(350_000.0, waits=5.0), "G5.waits"),
        (("5", "124m-compiled"), fast(350_000.0, pageable_copies=6.0), "G5.pageable"),
        (("5", "124m-compiled"), fast(350_000.0, boundary_seconds=0.02), "G5.boundary"),
        (("8", "h200-recompute"), large(30_000.0), "G8.tokens"),
        (("8", "h200-recompute"), large(40_000.0), "G8.peak"),
        (
            ("6", "h200"),
            {**large(5e4), "stepped": {"allocated_bytes": 29e9, "planned_bytes": 25.9e9}},
            "T3.state",
        ),
    ],
)
def test_a_claim_says_no(tmp_path: Path, run: tuple[str, str], given: dict[str, Any], claim: str) -> None:
    assert not claims(read(write(tmp_path, {**RUNS, run: given})))[claim]["ok"]


def test_a_run_that_did_not_come_out_takes_the_claim_with_it_and_says_why(tmp_path: Path) -> None:
    lost = {name: values for name, values in RUNS["2", "full"].items() if name != "end"}
    found = claims(read(write(tmp_path, {**RUNS, ("2", "full"): lost})))
    assert not found["G2.first_loss"]["ok"]
    assert found["G2.first_loss"]["reasons"]["fmscale"].endswith("exit 1 … boom")
    assert found["G1.first_loss"]["ok"]


def test_a_torn_last_line_is_passed_over_and_said(tmp_path: Path) -> None:
    path = write(tmp_path, RUNS) / RESULTS
    path.write_bytes(path.read_bytes()[:-9])
    reading = read(tmp_path)
    assert reading.notes[0].startswith("the last line is torn")
    assert "did not end by itself" in reading.notes[1]
    assert claims(reading)["T3.h200"]["ok"]


def test_torn_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no records of a GPU hour here.*gpu_hour\.sh printed"):
        read(tmp_path)
    path = write(tmp_path, RUNS) / RESULTS
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    for text, told in {
        "".join([*lines[:2], lines[2][:30] + "\n", *lines[3:]]): r"results\.jsonl:3: not JSON",
        "".join([*lines[:2], '{"kind": "step", "step": 3}\n']): r":3: no record of a GPU hour.*kind step, step, ok",
        "".join([lines[0], *lines]): r":2: no record of a GPU hour: found 'kind begin'",
        '{"step": 1, "loss": 3.0}\n': "is not of a GPU hour",
        whole.replace('"format_version": 1', '"format_version": 2'): "another version of the format: found 2",
        lines[0][:40]: "has no whole record",
        whole.replace(git("rev-parse", "HEAD"), "0" * 40): "code that this repository does not know",
        whole.replace(git("rev-parse", "HEAD"), ""): "found 'no commit'",
    }.items():
        path.write_text(text)
        with pytest.raises(FormatError, match=told):
            read(tmp_path)
    write(tmp_path, RUNS, versions={**GPU, "gpu": None})
    with pytest.raises(ConfigError, match="taken without a GPU"):
        read(tmp_path)


def test_results_are_kept_but_not_of_a_dry_run_or_in_place_of_more(tmp_path: Path) -> None:
    results = tmp_path / "results"
    path = keep(read(write(tmp_path, RUNS)), results)
    assert path == results / "gpu_train.json"
    whole = path.read_text()
    less = read(write(tmp_path, {of: given for of, given in RUNS.items() if of[0] != "6"}))
    with pytest.raises(ConfigError, match=r"has figures that these records lack: found 'G8\.peak, G8\.tokens, T3"):
        keep(less, results)
    with pytest.raises(ConfigError, match="records of a dry run"):
        keep(read(write(tmp_path, RUNS, dry_run=True)), results)
    assert path.read_text() == whole


def test_changes_that_no_commit_has_are_said(tmp_path: Path) -> None:
    reading = read(write(tmp_path, RUNS, changed=True))
    assert reading.document["commit"].endswith(" with changes")
    assert "with changes that no commit has" in reading.notes[-1]


def test_tests_that_did_not_end_or_were_skipped_are_not_passed(tmp_path: Path) -> None:
    name = "tests/kernels/test_rope.py::test_{}"
    ended = {"passed": "", "failed": "assert 1 == 2", "skipped": "needs a GPU"}
    tests = [{"test": name.format(one), "outcome": one, "seconds": 1.0, "reason": why} for one, why in ended.items()]
    given = {"collected": {"tests": [name.format(one) for one in (*ended, "lost")]}, "test": tests}
    write(tmp_path, {("tests", "others"): given}, mode="kernels", steps=["0", "tests"])
    [claim] = read(tmp_path).document["claims"]
    assert (claim["id"], claim["ours"], claim["target"], claim["ok"]) == (
        "K.kernels.test_rope", 1.0, "all 4 pass", False,
    )  # fmt: skip
    reason = claim["reasons"]["fmscale"]
    assert all(part in reason for part in ("test_failed: assert 1 == 2", "1 skipped: needs a GPU", "1 did not end"))


def test_a_row_of_the_bench_and_a_choice_are_claims(tmp_path: Path) -> None:
    """The run with peers follows that of our kernel alone; where it did not end, the first run counts."""
    base = {"variant": "T=8192", "unit": "TFLOP/s", "intensity": 9.0, "flops": 1e12, "times": {}, "extra": {}}
    alone = {**base, "id": "forward causal E=64", "rates": {"ours": 300.0}, "reasons": {}}
    whole = {**alone, "rates": {"ours": 310.0, "flash": 250.0}}
    spent = {**alone, "rates": {}, "reasons": {"ours": "not measured: the time budget was spent"}}
    choice = {**base, "id": "forward E=64", "rates": {"shipped": 290.0, "wider": 300.0}, "reasons": {}}
    given: dict[tuple[str, str], dict[str, Any]] = {
        ("variants", "forward E=64"): {"variants": choice, "end": {"extensions": []}},
        ("rows", "rows"): {
            "ceilings": {"copy": 4.0, "matmul": 700.0},
            "row": [alone, whole],
            "end": {"extensions": []},
        },
    }
    steps = ["0", "variants", "rows"]
    found = claims(read(write(tmp_path / "whole", given, mode="kernels", steps=steps)))
    row = found["B.forward causal E=64"]
    assert (row["ours"], row["peers"]["flash"], row["limit"], row["ok"]) == (310.0, 250.0, 700.0, True)
    assert not found["A.forward E=64"]["ok"]
    given["rows", "rows"]["row"] = [alone, spent]
    given["variants", "forward E=64"]["variants"] = {**choice, "rates": {"shipped": 299.0, "wider": 300.0}}
    found = claims(read(write(tmp_path / "spent", given, mode="kernels", steps=steps)))
    assert (found["B.forward causal E=64"]["ours"], found["B.forward causal E=64"]["ok"]) == (300.0, False)
    assert found["A.forward E=64"]["ok"]
    del given["rows", "rows"]
    found = claims(read(write(tmp_path / "none", given, mode="kernels", steps=steps)))
    assert found["B.rows"]["reasons"]["fmscale"] == "the hour ended before step rows did"


def test_the_use_of_the_device_is_counted_over_the_profiled_steps() -> None:
    """Two steps of 100 ms; the device pauses for 2 ms inside each and for 5 ms between them."""

    def at(begin: float, end: float, cat: str, name: str) -> dict[str, Any]:
        return {"ts": begin * 1e3, "dur": (end - begin) * 1e3, "cat": cat, "name": name}

    events = [at(0, 100, "user_annotation", STEP), at(100, 200, "user_annotation", STEP)]
    events += [at(1, 100, "gpu_user_annotation", STEP)]  # the device's copy of a span is no step
    work = [(0, 40), (42, 98), (103, 140), (142, 200)]
    events += [at(begin, end, "kernel", "forward_kernel") for begin, end in work]
    events += [at(50, 60, "kernel", "beside"), at(104, 105, "gpu_memcpy", "Memcpy HtoD (Pageable -> Device)")]
    events += [at(3, 4, "gpu_memcpy", "Memcpy HtoD (Pinned -> Device)"), {"ph": "M", "name": "process_name"}]
    events += [at(90, 98, "cuda_runtime", "cudaStreamSynchronize"), at(5, 6, "cuda_runtime", "cudaLaunchKernel")]
    assert device_use(events) == {
        "steps": 2, "waits": 0.5, "pageable_copies": 0.5, "pinned_copies": 0.5,
        "idle_seconds": pytest.approx(0.0045), "boundary_seconds": pytest.approx(0.005),
    }  # fmt: skip


def test_the_table_has_the_results_and_says_so_where_there_are_none(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}old\n{END}\nafter\n")
    assert as_markdown(tmp_path / "results") == NOTHING
    keep(read(write(tmp_path, RUNS)), tmp_path / "results")
    fill(readme, tmp_path / "results")
    text = readme.read_text()
    assert (
        "| 1.3 B, T = 2048, one GPU, the store and checkpoints included | 50,000 tokens/s | >= 45,000 | yes |" in text
    )
    assert "| what a later save held training up, the most | not measured | < 0.05 | **no** |" in text
    assert "NVIDIA H200, torch 2.11.0, Triton 3.6.0, commit " in text
    assert "`kernels` has not run on a GPU yet" in text
    assert text.startswith(f"before\n{BEGIN}| on a GPU")
    assert text.endswith(f"{END}\nafter\n")
    readme.write_text("no place\n")
    with pytest.raises(ConfigError, match="has no place for the table"):
        fill(readme, tmp_path / "results")
