"""The audit proves the received rows, and detects every kind of error in them."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fmscale.data.open import open_loader
from fmscale.data.provenance.audit import AuditReport, audit
from fmscale.data.provenance.delivery import SCHEMA, DeliveryRecord, order_hash, read_records
from fmscale.data.provenance.stored import AuditSource
from fmscale.errors import DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.open import open_store
from tests.helpers.corpus import Corpus, T, store_corpus


@pytest.fixture(scope="module")
def store() -> Backend:
    return open_store("memory://audit-tests")


@pytest.fixture(scope="module")
def corpus(store: Backend) -> Corpus:
    return store_corpus(store)


def source_of(store: Backend) -> AuditSource:
    return AuditSource(dataset=open_dataset(store, "corpus"), commits=(0, 1), split="train", weights=((0, 1.0),))


def record(store: Backend, folder: Path, samples: int, ranks: int = 2) -> list[Path]:
    paths = []
    for rank in range(ranks):
        path = folder / f"rank{rank}.arrow"
        loader = open_loader(
            store, dataset="corpus", sequence_length=T, batch=8, seed=3, dp_rank=rank, dp_size=ranks, document_ids=True
        )
        with loader, DeliveryRecord(path, "uint16") as delivery:
            for batch in itertools.takewhile(lambda b: b.step < samples // 8, loader):
                delivery.add(batch)
        paths.append(path)
    return paths


def rewritten(paths: list[Path], out: Path, change: Callable[[list[dict[str, Any]]], Any]) -> list[Path]:
    rows = read_records(paths).to_pylist()
    rows = change(rows) or rows
    with out.open("wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    return [out]


def test_two_epochs_on_two_ranks_pass(store: Backend, corpus: Corpus, tmp_path: Path) -> None:
    rows = len(corpus.rows())
    report = audit(record(store, tmp_path, 2 * rows // 8 * 8), [source_of(store)])
    assert report.problems == []
    assert report.rows == 2 * rows // 8 * 8
    assert report.tokens == report.rows * T
    assert report.entropy_ratio > 0.98
    assert abs(report.lag1_correlation) < 0.1


def test_what_is_delivered_again_after_a_resume_counts_once(store: Backend, corpus: Corpus, tmp_path: Path) -> None:
    paths = record(store, tmp_path, len(corpus.rows()) // 8 * 8)
    whole = audit(paths, [source_of(store)])
    killed, resumed = tmp_path / "000001-rank00000.arrow", tmp_path / "000003-rank00000.arrow"
    rewritten(paths, killed, lambda rows: rows[:200])
    rewritten(paths, resumed, lambda rows: rows[104:])
    report = audit([resumed, killed], [source_of(store)])
    assert report.problems == []
    assert report == dataclasses.replace(whole, redelivered=96)

    rewritten(paths, resumed, lambda rows: [{**rows[104], "digest": rows[105]["digest"]}, *rows[105:]])
    report = audit([resumed, killed], [source_of(store)])
    assert (report.redelivered, report.changed_samples) == (95, 1)
    assert "1 samples that came again as something else after a resume, first k=[104]" in report.problems

    # Two ranks of one job received the same sample: no resume explains that.
    same_job = tmp_path / "000001-rank00001.arrow"
    rewritten(paths, same_job, lambda rows: rows[104:])
    report = audit([same_job, killed], [source_of(store)])
    assert (report.redelivered, report.duplicate_samples) == (0, 96)
    assert "96 samples delivered more than once by one job" in report.problems


def test_records_that_begin_within_an_epoch(store: Backend, corpus: Corpus, tmp_path: Path) -> None:
    rows = len(corpus.rows())
    paths = record(store, tmp_path, 2 * rows // 8 * 8)
    half = rewritten(paths, tmp_path / "fork.arrow", lambda found: found[rows // 2 : 2 * rows - rows // 4])
    assert audit(half, [source_of(store)]).problems == []


def drop_row(rows: list[dict[str, Any]]) -> Any:
    del rows[10]


def repeat_row(rows: list[dict[str, Any]]) -> Any:
    rows.append(rows[10])


def repeat_data_under_another_k(rows: list[dict[str, Any]]) -> Any:
    rows[11] = {**rows[10], "k": rows[11]["k"]}


def wrong_tokens(rows: list[dict[str, Any]]) -> Any:
    rows[10]["digest"] = rows[11]["digest"]


def wrong_offset(rows: list[dict[str, Any]]) -> Any:
    rows[10]["pieces"][0]["offset"] += 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (drop_row, "missing_samples"),
        (repeat_row, "duplicate_samples"),
        (repeat_data_under_another_k, "tokens_twice"),
        (wrong_tokens, "wrong_bytes"),
        (wrong_offset, "wrong_bytes"),
    ],
)
def test_every_fault_is_seen(
    store: Backend, corpus: Corpus, tmp_path: Path, change: Callable[..., Any], field: str
) -> None:
    paths = record(store, tmp_path, len(corpus.rows()) // 8 * 8)
    good = audit(paths, [source_of(store)])
    bad = audit(rewritten(paths, tmp_path / "changed.arrow", change), [source_of(store)])
    assert good.problems == []
    assert getattr(good, field) == 0
    assert getattr(bad, field) > 0
    assert bad.problems


def test_rows_missing_from_a_whole_epoch_are_seen(store: Backend, corpus: Corpus, tmp_path: Path) -> None:
    rows = len(corpus.rows())
    paths = record(store, tmp_path, 2 * rows // 8 * 8)

    def replace_one_by_another(found: list[dict[str, Any]]) -> None:
        lost = found[5]["pieces"]
        for row in found:
            if row["pieces"] == lost:
                row.update({key: found[6][key] for key in ("pieces", "digest", "row")})

    report = audit(rewritten(paths, tmp_path / "x.arrow", replace_one_by_another), [source_of(store)])
    assert report.tokens_twice > 0


def test_unshuffled_delivery_has_low_entropy(store: Backend, corpus: Corpus, tmp_path: Path) -> None:
    paths = record(store, tmp_path, len(corpus.rows()) // 8 * 8)

    def in_dataset_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows.sort(key=lambda row: row["row"])
        return [{**row, "k": k} for k, row in enumerate(rows)]

    report: AuditReport = audit(rewritten(paths, tmp_path / "x.arrow", in_dataset_order), [source_of(store)])
    assert report.entropy_ratio < 0.6
    assert report.lag1_correlation > 0.9


def test_the_order_hash_depends_on_what_was_delivered_and_not_on_the_ranks(
    store: Backend, corpus: Corpus, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    one = read_records(record(store, tmp_path / "a", 160, ranks=1))
    three = read_records(record(store, tmp_path, 160, ranks=3))
    assert order_hash(one) == order_hash(three)
    assert order_hash(one) != order_hash(one.slice(1))


def test_a_cut_record_counts_up_to_its_last_batch_and_foreign_documents_are_refused(
    store: Backend, corpus: Corpus, tmp_path: Path
) -> None:
    (path,) = record(store, tmp_path, 2048, ranks=1)
    whole = len(read_records([path]))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    assert 0 < len(read_records([path])) < whole
    store_corpus(store, "strange", seed=99)
    other = dataclasses.replace(source_of(store), dataset=open_dataset(store, "strange"))
    with pytest.raises(DataError, match="not in the dataset"):
        audit([path], [other])
    with pytest.raises(DataError, match="no such delivery record"):
        read_records([tmp_path / "none.arrow"])


def test_a_record_on_a_disk_that_fails_is_not_taken_for_a_record_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "1-rank0.arrow"
    path.symlink_to("/proc/self/mem")  # whose first page is unmapped: EIO
    with pytest.raises(OSError, match="Input/output error"):
        read_records([path])
    path.unlink()
    path.write_bytes(b"")
    with pytest.raises(DataError, match="no delivered rows"):
        read_records([path])
