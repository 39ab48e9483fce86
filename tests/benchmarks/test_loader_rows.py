"""Rows of `fmscale bench loader` fail on wrong components; short forms on real components."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import loader_faults, loader_flat, loader_over_cache
from benchmarks.harness import Claim, TooLong, run_json
from benchmarks.loader import PARTS, ROWS, Bench, Part, choose, make_corpus, measured, prepare
from benchmarks.loader_elastic import MIXTURES, compare, elastic_claims, equal
from benchmarks.loader_faults import Fault, deliver, fault_claims, judged
from benchmarks.loader_memory import added_per_rank, memory_claims, node
from benchmarks.loader_shuffle import good, quality, shuffle_claims
from benchmarks.memory_group import memory_group
from benchmarks.peers.common import ROW_TOKENS
from benchmarks.peers.ours import write_dataset
from fmscale.data.provenance.delivery import SCHEMA, read_records
from fmscale.errors import ConfigError
from tests.helpers.s3_server import S3Server

MIB = 2**20


def store_rows(folder: Path, rows: int) -> str:
    corpus = folder / "rows.u16"
    tokens = np.random.default_rng(0).integers(0, 50000, (rows, ROW_TOKENS), dtype=np.uint16)
    tokens.tofile(corpus)
    write_dataset(corpus, str(folder / "store"), segment_tokens=2**20)
    return str(folder / "store")


def test_parts_are_chosen_by_the_ids_of_their_claims() -> None:
    assert choose([]) == list(PARTS)
    assert [part.ids for part in choose(["W5", "W1.over"])] == [("W1.over_cache",), ("W5.elastic",)]
    assert len(choose(["W3"])) == 2
    assert [part.ids[0] for part in choose(["W1"])] == ["W1.local_warm", "W1.over_cache"]
    with pytest.raises(ConfigError, match="no claim") as caught:
        choose(["W5", "W7"])
    assert "W12.faults" in caught.value.remedy


def test_a_part_that_breaks_leaves_its_claims_unmet_with_the_reason(tmp_path: Path) -> None:
    def breaks(bench: Bench) -> list[Claim]:
        raise RuntimeError("exit 1: it broke")

    bench = Bench(work=tmp_path, corpus=tmp_path / "c", verified={}, server=None, quick=True)
    claims = measured(Part(ids=("a", "b"), measure=breaks), bench)
    assert [(claim.id, claim.ours, claim.ok) for claim in claims] == [("a", None, False), ("b", None, False)]
    assert claims[0].reasons == {"fmscale": "exit 1: it broke"}


def test_a_process_without_end_is_told_from_one_that_fails() -> None:
    with pytest.raises(TooLong):
        run_json(["sleep", "60"], timeout=0.1)
    with pytest.raises(RuntimeError, match="exit 3"):
        run_json(["sh", "-c", "exit 3"], timeout=10)


def has_memory_groups() -> bool:
    try:
        with memory_group(64 * MIB):
            return True
    except RuntimeError:
        return False


@pytest.mark.skipif(not has_memory_groups(), reason="no memory cgroup can be made here")
def test_a_memory_group_limits_the_page_cache(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as writer:
        writer.write(bytes(100 * MIB))
        writer.flush()
        os.fsync(writer.fileno())
        os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    # Reads only: pages that wait to be written cannot be reclaimed, and a group full of them kills the writer.
    with memory_group(64 * MIB) as group:
        subprocess.run(group.inside(["cksum", str(file)]), check=True, stdout=subprocess.DEVNULL)
        assert 0.95 * 64 * MIB < group.peak_bytes() <= 64 * MIB
    assert not group.folder.exists()


def test_without_a_memory_group_the_row_is_not_measured_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = tmp_path / "nothing"
    nothing.write_text("")
    with (
        pytest.raises(RuntimeError, match="no memory cgroup"),
        memory_group(MIB, mounts=nothing, own=nothing),
    ):
        pass

    monkeypatch.setattr(
        loader_over_cache, "memory_group", lambda limit: memory_group(limit, mounts=nothing, own=nothing)
    )
    corpus = tmp_path / "corpus.u16"
    corpus.write_bytes(bytes(1000))
    verified = dict.fromkeys(loader_over_cache.SYSTEMS)
    (claim,) = loader_over_cache.over_cache_claims(tmp_path, corpus, verified, quick=True)
    assert (claim.ours, claim.ok, claim.runs) == (None, False, [])
    assert claim.reasons["fmscale"] == "not measured: no memory cgroup is mounted here"


@pytest.mark.parametrize(
    ("ours", "limit", "litdata", "ok"),
    [
        (90.0, 100.0, 40.0, True),
        (79.0, 100.0, 10.0, False),
        (90.0, 100.0, 46.0, False),
        (90.0, 100.0, None, False),
    ],
)
def test_over_cache_is_met_against_block_reads_and_litdata(ours: float, limit: float, litdata: Any, ok: bool) -> None:
    claim = Claim(id="", what="", unit="", ours=ours, limit=limit, peers={"litdata": litdata})
    loader_over_cache.judge(claim)
    assert claim.ok is ok


def test_sorted_rows_are_not_shuffled_and_rows_that_come_twice_are_refused() -> None:
    rows = np.arange(4096)
    rest = {"bytes_ratio": 1.0}
    assert good({**quality(np.random.default_rng(7).permutation(rows)), **rest})
    assert not good({**quality(rows), **rest})
    assert not good({**quality(np.random.default_rng(7).permutation(rows)), "bytes_ratio": 1.11})
    with pytest.raises(RuntimeError, match="every row once"):
        quality(np.zeros(4096, dtype=np.int64))


def test_memory_that_each_rank_adds_is_the_slope_without_batches() -> None:
    runs = [{"ranks": n, "loader_bytes": 50e6 + 3e6 * n, "batch_bytes": 1e6 * n} for n in (1, 2, 4)]
    assert added_per_rank(runs) == pytest.approx(2e6)


def test_flat_forwards_are_judged_by_all_nodes_together() -> None:
    """Two steps of two nodes; in the second a sample is longer than a node's part of the step."""
    rest = {"step_bytes": 0}
    nodes = [
        rest | {"tokens": [66, 90], "positions": [128, 128], "samples": [2, 1], "longest": [40, 90], "read": 300},
        rest | {"tokens": [54, 10], "positions": [64, 64], "samples": [2, 2], "longest": [30, 5], "read": 100},
    ]
    run = loader_flat.together(nodes, total=320)
    assert run["padding"] == pytest.approx(1 - 220 / 384)
    assert run["padded"] == pytest.approx(1 - 220 / (4 * 40 + 3 * 90))
    assert (run["bytes"], run["level"], run["level_worst"]) == (1.25, 1.1, 1.1)
    even = {"system": "even", "nodes": 2} | run | {"padding": 0.01, "level_worst": 1.0}
    for change, wrong in (
        ({}, None),
        ({"padding": 0.05}, "W13.padding"),
        ({"level_worst": 1.06}, "W13.level"),
        ({"bytes": 1.31}, "W13.bytes"),
    ):
        claims = loader_flat.dealt_claims([{**even, "system": "alone", "nodes": 1, "bytes": 1.09}, even | change])
        assert [claim.id for claim in claims if not claim.ok] == [wrong] * (wrong is not None)


@pytest.mark.parametrize(
    ("fault", "result", "wrong"),
    [
        (Fault(name="", url=""), {}, None),
        (Fault(name="", url=""), {"silent": 1}, "silent"),
        (Fault(name="", url=""), {"order": "other"}, "not_as_promised"),
        (Fault(name="", url=""), {"replaced_rows": 1}, "not_as_promised"),
        (Fault(name="", url="", happened=lambda result: False), {}, "not_as_promised"),
        (Fault(name="", url="", lasting=True), {"order": "other", "replaced_rows": 3}, None),
        (Fault(name="", url="", lasting=True), {}, "not_as_promised"),
    ],
)
def test_a_fault_is_judged_by_rows_order_and_record(fault: Fault, result: dict[str, Any], wrong: str | None) -> None:
    expected = {"silent": 0, "replaced_rows": 0, "order": "right"}
    cell = judged(fault, expected | result, expected)
    assert cell["value"] == float(wrong is not None)
    assert [name for name in ("silent", "crash", "hang", "not_as_promised") if cell[name]] == [wrong] * bool(wrong)


@pytest.mark.slow
@pytest.mark.skipif(not has_memory_groups(), reason="no memory cgroup can be made here")
def test_feeds_beyond_the_page_cache_are_measured_at_their_limit(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.u16"
    make_corpus(corpus, ROWS[True])
    verified: dict[str, str | None] = dict.fromkeys(loader_over_cache.SYSTEMS)
    verified |= prepare(tmp_path, corpus, ["fmscale", "limit"]) | {"litdata": "left out of the test"}
    (claim,) = loader_over_cache.over_cache_claims(tmp_path, corpus, verified, quick=True)
    figures = {"fmscale": claim.ours, "limit": claim.limit, **claim.peers}
    assert [name for name, value in figures.items() if not value] == ["litdata"], claim.reasons
    assert not claim.ok
    # In 4 GiB the data stays in the page cache: the figure measures something else, and does not count.
    verified |= dict.fromkeys(("fmscale", "memmap_batched"), "left out")
    (claim,) = loader_over_cache.over_cache_claims(tmp_path, corpus, verified, quick=True, limit=2**32)
    assert claim.limit is None
    assert claim.reasons["limit"].startswith("the limit of 4096 MiB was not reached")


@pytest.mark.slow
def test_elastic_order_is_equal_and_another_row_would_be_seen(tmp_path: Path, s3: S3Server) -> None:
    (claim,) = elastic_claims(tmp_path, s3, steps=2, ranks=(3, 2), mixtures=list(MIXTURES)[1:])
    assert claim.ok, claim.runs
    (cell,) = claim.runs
    assert cell["rows"] == 2 * 40 + 2 * 80
    assert sum(cell["store_bytes"][1:]) < 0.2 * cell["store_bytes"][0]
    folder = tmp_path / "elastic-3-sources-stream"
    path = folder / "elastic" / "0-1.arrow"
    rows = read_records([path]).to_pylist()
    rows[3]["digest"] = bytes(16)
    _write(path, rows)
    assert not equal(cell | compare(folder / "elastic", folder / "whole"))
    _write(path, rows[:3] + rows[4:])
    assert compare(folder / "elastic", folder / "whole")["drops"] == 1


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    with path.open("wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))


@pytest.mark.slow
def test_samples_of_mixed_lengths_are_dealt_evenly_in_little_memory(tmp_path: Path) -> None:
    claims = {claim.id: claim for claim in loader_flat.flat_claims(tmp_path, quick=True)}
    assert claims["W13.padding"].ok
    assert claims["W13.memory"].ok, claims["W13.memory"].runs
    alone, *several, whole = (run["bytes"] for run in claims["W13.bytes"].runs if "texts" in run["system"])
    assert 1 <= alone <= 1.1
    assert max(several) < 2
    assert whole < several[-1], "of more samples fewer move"


@pytest.mark.slow
def test_the_shuffle_curve_rises_with_the_window(tmp_path: Path) -> None:
    (claim,) = shuffle_claims(tmp_path, units=128, parts=(0.02, 1.0))
    values = [run["value"] for run in claim.runs]
    assert values == sorted(values)
    assert values[0] < 0.7
    assert values[-1] > 0.98
    assert not claim.ok
    # Two windows of memory never hold all data: every unit is read again in the next lease.
    assert claim.runs[0]["bytes_ratio"] > 0.99


@pytest.mark.slow
def test_memory_of_ranks_is_seen_from_outside(tmp_path: Path) -> None:
    store = store_rows(tmp_path, 2048)
    (claim,) = memory_claims(store, quick=True, ranks=(1, 2), batches=256)
    assert [run["ranks"] for run in claim.runs] == [1, 2]
    assert claim.ours is not None
    # 64 units of 262 kB fit into the memory of the first run; of the second's, 3 MiB hold 11.
    less = node(store, 1, 3 * MIB, 256)["loader_bytes"]
    assert 5e6 < claim.runs[0]["loader_bytes"] - less < 18e6


@pytest.mark.slow
def test_faults_are_survived_on_real_stores(tmp_path: Path, s3: S3Server) -> None:
    (claim,) = fault_claims(tmp_path, s3, quick=True, outage=2.0, stall=11.0)
    assert claim.ok, json.dumps(claim.runs, indent=1)
    assert len(claim.runs) == 10
    damaged = {run["system"]: run["replaced_rows"] for run in claim.runs if run["replaced_rows"]}
    assert damaged.keys() == {f"{place}: {name}" for place in ("local", "S3") for name in loader_faults.DAMAGES}


@pytest.mark.slow
def test_wrong_rows_crashes_and_hangs_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = store_rows(tmp_path, 2048)
    digests = tmp_path / "digests.npy"
    np.save(digests, np.zeros(2048, dtype=np.uint64))
    assert deliver(Fault(name="", url=url), digests)["silent"] == 2048
    assert "no dataset" in deliver(Fault(name="", url=str(tmp_path / "nowhere")), digests)["crash"]
    monkeypatch.setattr(loader_faults, "PATIENCE", 0.2)
    assert deliver(Fault(name="", url=url), digests) == {"hang": 0.2}
