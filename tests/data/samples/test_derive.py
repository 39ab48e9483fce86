"""The column of sizes: the spec's sizes for any number of workers, with every trouble named, and resumable."""

import itertools
import json
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fmscale.config.spec import TextSpec
from fmscale.data.samples import segment_sizes
from fmscale.data.samples.derive import Derived, derive_sizes
from fmscale.data.samples.protocol import Spec
from fmscale.data.samples.sizes import SIZE
from fmscale.data.samples.specs import make_spec, size_text, spec_text
from fmscale.errors import ConfigError, DataError, RankError
from fmscale.store.backends.local import LocalBackend
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.columns import column_key, open_column
from fmscale.store.datasets.dataset import Dataset, open_dataset
from fmscale.store.datasets.verify import verify_dataset
from fmscale.store.doctor.probe import require_writable
from fmscale.store.open import open_store
from fmscale.store.segments.handle import read_rows
from fmscale.store.segments.records import open_record_segment
from tests.helpers.own_specs import Bytes
from tests.helpers.record_datasets import record_dataset
from tests.helpers.records import record_id
from tests.helpers.segments import documents, flip, write_commit

ROOT = Path(__file__).parents[3]


def table(count: int, seed: int) -> pa.Table:
    """Texts of up to 90 letters, some of several bytes, and a column that no spec reads."""
    rng = np.random.default_rng(seed)
    texts = ["aé✓ "[int(rng.integers(4))] * int(rng.integers(1, 30)) for _ in range(count)]
    return pa.table({"text": texts, "other": list(range(count))})


def bytes_spec(store: Backend) -> Spec:
    return make_spec(TextSpec(tokenizer="bytes", eos=True), store, limit=1024)


def sizes(dataset: Dataset, spec: Spec, commit: int = 0) -> np.ndarray:
    manifest = dataset.commits()[commit].manifests["train"]
    column = open_column(dataset.backend, column_key(dataset.name, manifest.digest, SIZE, size_text(spec)))
    assert column is not None
    return column.take(np.arange(column.records, dtype=np.uint64))


def expected(spec: Spec, tables: list[pa.Table]) -> list[int]:
    return [spec.size(record) for part in tables for record in part.to_pylist()]


def derived(dataset: Dataset, store: Path, spec: Spec, workers: int = 1) -> Derived:
    return derive_sizes(str(store), dataset.name, "train", spec, workers=workers)


def test_any_number_of_workers_gives_the_sizes_of_the_spec(tmp_path: Path) -> None:
    first, second = [table(40, 0), table(1, 1), table(300, 2)], [table(20, 3)]
    columns, results = [], []
    for workers in (1, 3):
        store = tmp_path / f"{workers}"
        backend = open_store(str(store))
        record_dataset(backend, "d", first)
        dataset = record_dataset(backend, "d", second)
        spec = bytes_spec(backend)
        told: list[tuple[int, int]] = []
        results.append(
            derive_sizes(str(store), "d", "train", spec, workers=workers, progress=lambda *p, to=told: to.append(p))
        )
        assert (told[0], told[-1]) == ((0, 361), (361, 361))
        assert backend.exists("fmscale.json"), "the store was examined before the first write"
        columns.append([sizes(dataset, spec, commit).tolist() for commit in (0, 1)])
        again = derived(dataset, store, spec)
        assert vars_of(again) == {**vars_of(results[-1]), "new": False}
        assert verify_dataset(backend, dataset) == []
    assert columns[0] == columns[1] == [expected(spec, first), expected(spec, second)]
    assert vars_of(results[0]) == vars_of(results[1])
    everything = np.array([*columns[0][0], *columns[0][1]])
    result = results[0]
    assert (result.new, result.commits, result.resumed, result.records) == (True, (0, 1), 0, 361)
    assert (result.tokens, result.largest) == (everything.sum(), everything.max())
    assert (result.empty, result.bad, result.names) == (0, 0, ())
    counts = [int(((everything >= 2**i) & (everything < 2 ** (i + 1))).sum()) for i in range(len(result.histogram))]
    assert list(result.histogram) == counts
    assert sum(counts) == 361


def vars_of(result: Derived) -> dict[str, object]:
    return {name: getattr(result, name) for name in Derived.__dataclass_fields__}


def test_records_that_become_no_sample_have_size_0_and_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # the workers import the spec's class from here
    backend, spec = open_store(str(tmp_path)), Bytes()
    texts = ["abc", "", "raise", "huge", None, "negative", "half", "de", ""]
    dataset = record_dataset(backend, "d", [pa.table({"text": texts}), table(9, 0)])
    result = derived(dataset, tmp_path, spec, workers=2)
    assert sizes(dataset, spec).tolist()[:9] == [3, 0, 0, 0, 0, 0, 0, 2, 0]
    assert (result.empty, result.bad) == (2, 5)
    assert [name for name, _ in result.names] == [record_id(i).hex() for i in (2, 3, 4, 5, 6)]
    reasons = [reason for _, reason in result.names]
    assert reasons[0] == "ZeroDivisionError: a fault of the spec"
    assert "2**32 - 1 (4294967296)" in reasons[1]
    assert "TypeError" in reasons[2]
    assert derived(dataset, tmp_path, spec).names == result.names


def test_text_that_is_no_text_is_named(tmp_path: Path) -> None:
    backend = open_store(str(tmp_path))
    data = pa.array([b"good", b"\xff", None, b""], pa.binary()).cast(pa.string(), safe=False)
    dataset = record_dataset(backend, "d", [pa.table({"text": data})])
    spec = bytes_spec(backend)
    result = derived(dataset, tmp_path, spec)
    assert sizes(dataset, spec).tolist() == [4, 0, 0, 0]
    assert (result.empty, result.bad) == (1, 2)
    assert [name for name, _ in result.names] == [record_id(1).hex(), record_id(2).hex()]
    assert "UnicodeDecodeError" in result.names[0][1]
    assert "no text in text" in result.names[1][1]


def segment_files(dataset: Dataset, unit: int, part: str) -> list[str]:
    row = dataset.commits()[0].manifests["train"].row(unit)
    return sorted(info.key for info in dataset.backend.list_objects(row.prefix) if f"/{part}" in info.key)


def test_damage_costs_the_records_of_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_sizes, "WINDOW_BYTES", 40_000)
    backend = open_store(str(tmp_path))
    tables = [table(3000, seed) for seed in range(5)]
    dataset = record_dataset(backend, "d", tables)
    spec = bytes_spec(backend)
    row = dataset.commits()[0].manifests["train"].row(0)
    segment = open_record_segment(backend, row.prefix, row.seal)
    index = read_rows(backend, segment, "batches", 0, segment.arrays["batches"].layout.rows).astype(int)
    place, size = index[5, :2].tolist()
    flip(backend, segment_files(dataset, 0, "records/")[0], place % 2**48 + size // 2)
    backend.delete(segment_files(dataset, 1, "records/")[0])
    backend.delete(segment_files(dataset, 2, "seal.json")[0])
    flip(backend, segment_files(dataset, 3, "batches/c")[0], 0)
    result = derived(dataset, tmp_path, spec)
    found = sizes(dataset, spec).reshape(5, 3000)
    right = np.array(expected(spec, tables)).reshape(5, 3000)
    assert ((found == right) | (found == 0)).all()
    lost = np.flatnonzero(found[0] == 0)
    assert lost.tolist() == list(range(index[5, 2], index[6, 2]))
    assert not found[1:4].any()
    assert (found[4] == right[4]).all()
    assert (result.bad, result.empty) == (len(lost) + 3 * 3000, 0)
    assert result.names[0][0] == f"records {lost[0]} to {lost[-1]} of {row.prefix}"
    assert "does not match its checksum" in result.names[0][1]
    assert "no object" in result.names[1][1] or "not" in result.names[1][1]


def test_memory_is_that_of_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, reads = open_store(str(tmp_path)), list[int]()
    dataset = record_dataset(backend, "d", [table(20_000, 0)])
    spec = bytes_spec(backend)
    monkeypatch.setattr(segment_sizes, "WINDOW_BYTES", 2**16)
    read = LocalBackend.read_into

    def counted(self: LocalBackend, key: str, start: int, *buffers: memoryview) -> None:
        reads.append(sum(buffer.nbytes for buffer in buffers))
        read(self, key, start, *buffers)

    monkeypatch.setattr(LocalBackend, "read_into", counted)
    derived(dataset, tmp_path, spec)
    size = backend.head(segment_files(dataset, 0, "records/")[0]).bytes
    assert size > 10 * 2**16
    assert max(reads) < 2**16 + 2 * 2**14 + 2 * 4096


@pytest.mark.slow
def test_killed_at_any_write_it_goes_on(tmp_path: Path) -> None:
    backend = open_store(str(tmp_path / "store"))
    tables = [table(5, 0), pa.table({"text": ["", "x"], "other": [1, 2]})]
    record_dataset(backend, "d", tables)
    require_writable(backend)
    spec = bytes_spec(backend)
    out = subprocess.check_output(
        [sys.executable, "-m", "tests.helpers.deriver", str(tmp_path), "d", spec_text(spec)],
        cwd=ROOT,
        text=True,
        timeout=400,
    )
    lines = [json.loads(line) for line in out.splitlines()]
    # A note, two parts and the last object, each before and after.
    assert [line["killed"] for line in lines] == [True] * 8 + [False]
    whole = None
    for line in lines:
        copy = open_dataset(open_store(line["store"]), "d")
        assert sizes(copy, spec).tolist() == expected(spec, tables)
        stored = {info.key: copy.backend.get(info.key) for info in copy.backend.list_objects("datasets/d/columns")}
        assert stored == (whole := whole or stored)


def test_a_worker_that_is_killed_is_named_and_the_job_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    backend, spec = open_store(str(tmp_path / "store")), Bytes(deaths=str(tmp_path))
    dataset = record_dataset(backend, "d", [table(9, 0), table(9, 1), table(9, 2), pa.table({"text": ["kill"]})])
    (tmp_path / "next").touch()
    prefix = dataset.commits()[0].manifests["train"].row(3).prefix
    with pytest.raises(RankError, match=f"A process of derive died while it worked on {prefix}"):
        derived(dataset, tmp_path / "store", spec, workers=2)
    # The last unit is given to a worker only when two units are done.
    told: list[tuple[int, int]] = []
    result = derive_sizes(str(tmp_path / "store"), "d", "train", spec, workers=2, progress=lambda *p: told.append(p))
    assert result.resumed in (2, 3)
    assert told[0] == (9 * result.resumed, 28)
    assert (result.records, result.bad, sizes(dataset, spec)[27]) == (28, 0, 4)


def whole_job(url: str) -> None:
    store = open_store(url)
    dataset = record_dataset(store, "d", [table(30, 0), table(3, 1)])
    spec = bytes_spec(store)
    derive_sizes(url, "d", "train", spec)
    assert sizes(dataset, spec).tolist() == expected(spec, [table(30, 0), table(3, 1)])


def test_on_a_store_in_memory() -> None:
    whole_job(f"memory://{uuid.uuid4().hex}")


@pytest.mark.slow
def test_on_s3(s3_url: str) -> None:
    whole_job(s3_url)


def test_a_batch_of_texts_has_the_sizes_of_its_texts(memory_store: Backend) -> None:
    records = [{"text": text} for text in ["", "a", "aé✓", b"bytes", "x" * 500]]
    for bos, eos in itertools.product((False, True), repeat=2):
        config = TextSpec(tokenizer="bytes", bos=bos, eos=eos)
        spec = make_spec(config, memory_store, limit=1024)
        lengths = [max(len(spec.decode(record)) - 1, 0) for record in records]
        assert spec.sizes(records) == [spec.size(record) for record in records] == lengths  # type: ignore[attr-defined]


def test_what_has_no_sizes_is_refused(tmp_path: Path) -> None:
    backend = open_store(str(tmp_path))
    write_commit(backend, "tokens", {"train": [documents([5])]})
    dataset = record_dataset(backend, "d", [pa.table({"txt": ["a"]})])
    spec = bytes_spec(backend)
    with pytest.raises(DataError, match="no records in the split train of dataset tokens") as error:
        derive_sizes(str(tmp_path), "tokens", "train", spec)
    assert error.value.found == "tokens"
    with pytest.raises(DataError, match="no records in the split other"):
        derive_sizes(str(tmp_path), "d", "other", spec)
    with pytest.raises(ConfigError, match="have no such column") as refused:
        derived(dataset, tmp_path, spec)
    assert (refused.value.found, "txt" in refused.value.remedy) == ("text", True)
    for url, workers in ((str(tmp_path), 0), ("memory://x", 2)):
        with pytest.raises(ConfigError, match="that many workers"):
            derive_sizes(url, "d", "train", spec, workers=workers)
    assert [info.key for info in backend.list_objects("datasets/d/columns")] == []
