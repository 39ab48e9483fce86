from collections.abc import Callable
from dataclasses import replace
from threading import Barrier, Thread
from typing import Any

import pytest

from fmscale.errors import Conflict, CorruptData, DataError, FmscaleError, ObjectNotFound, StoreUnavailable
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.commit import references
from fmscale.store.datasets.dataset import Dataset, create_or_open, list_datasets, open_dataset
from fmscale.store.datasets.tokenizers import load_tokenizer, store_tokenizer, tokenizer_key
from fmscale.store.datasets.verify import verify_dataset
from fmscale.store.digest import metadata_digest
from fmscale.store.log.retirement import collect_garbage, retire
from fmscale.store.segments.seal import SealInfo, job_folder, segment_prefix
from fmscale.store.segments.tokens import open_segment, read_tokens
from tests.helpers.faulty_backend import Crash, Fault, FaultyBackend
from tests.helpers.segments import TOKENIZER, documents, flip, write_commit, write_segment

JOB = metadata_digest(b"job")
TRAIN = [documents([5, 6]), documents([7], seed=1)]
SPLITS = {"train": TRAIN, "held_out": [documents([3], seed=2)]}


def sealed_units(store: Backend, name: str, job: str = JOB) -> dict[str, list[tuple[int, SealInfo]]]:
    """The segments of SPLITS, sealed but not committed."""
    return {
        split: [
            (unit, write_segment(store, segment_prefix(name, job, unit, split), docs, split=split))
            for unit, docs in enumerate(units)
        ]
        for split, units in SPLITS.items()
    }


def references_of(name: str) -> Any:
    return lambda entry: references(name, entry.body)


def test_a_commit_gives_back_what_was_ingested(store: Backend) -> None:
    commit = write_commit(store, "d", SPLITS, bos=1, eos=2)
    dataset = open_dataset(store, "d")
    (found,) = dataset.commits()
    assert (found.number, found.job, found.digest) == (0, JOB, commit.digest)
    assert (found.bos, found.eos, found.dtype, found.kind) == (1, 2, "uint16", "tokens")
    assert found.tokenizer is not None
    assert load_tokenizer(store, found.tokenizer) == TOKENIZER
    assert {split: (t.segments, t.documents, t.tokens) for split, t in found.totals.items()} == {
        "train": (2, 3, 18),
        "held_out": (1, 1, 3),
    }
    assert sum(t.bytes for t in found.totals.values()) == sum(
        info.bytes for info in store.list_objects("datasets/d/segments")
    )
    manifest = found.manifests["train"]
    assert manifest is found.manifests["train"]
    assert [manifest.place(token) for token in (0, 10, 11)] == [(0, 0), (0, 10), (1, 0)]
    tokens = []
    for i in range(manifest.segments):
        segment = open_segment(store, *manifest.segment(i))
        tokens += read_tokens(store, segment, 0, segment.tokens).tolist()
    assert tokens == [token for docs in TRAIN for doc in docs for token in doc.tokens]


def test_manifests_open_when_asked_for(memory_store: Backend) -> None:
    write_commit(memory_store, "d", SPLITS)
    (commit,) = open_dataset(memory_store, "d").commits()
    memory_store.delete(commit.body["manifests"]["held_out"]["key"])
    assert sorted(commit.manifests) == ["held_out", "train"]
    assert commit.manifests["train"].tokens == 18
    with pytest.raises(ObjectNotFound):
        _ = commit.manifests["held_out"]


def test_missing_datasets_name_the_nearest(store: Backend) -> None:
    with pytest.raises(DataError, match="no datasets yet"):
        open_dataset(store, "wikipedia")
    for name in ("wikipedia", "wikisource", "code"):
        write_commit(store, name, {"train": [documents([3])]})
    sealed_units(store, "unfinished")  # segments without a commit are not a dataset
    assert list_datasets(store) == ["code", "wikipedia", "wikisource"]
    for name in ("wikipdia", "Wikipedia"):
        with pytest.raises(DataError, match="Did you mean wikipedia") as caught:
            open_dataset(store, name)
        assert name in str(caught.value)
    with pytest.raises(DataError, match="code"):
        open_dataset(store, "zzz")
    with pytest.raises(DataError):
        open_dataset(store, "unfinished")
    assert open_dataset(store, "code").name == "code"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "-a", "é", "a" * 101, "a\n", "../x"])
def test_names_that_cannot_be_folders_are_refused(memory_store: Backend, name: str) -> None:
    with pytest.raises(DataError, match="cannot have this name"):
        create_or_open(memory_store, name)
    with pytest.raises(DataError):
        open_dataset(memory_store, name)


def test_another_tokenizer_is_refused_with_both_digests(memory_store: Backend) -> None:
    commit = write_commit(memory_store, "d", SPLITS)
    other = b'{"type":"other"}'
    with pytest.raises(DataError) as caught:
        write_commit(memory_store, "d", {"train": [documents([3])]}, job="b", tokenizer=other)
    message = str(caught.value)
    assert str(commit.tokenizer) in message
    assert metadata_digest(other) in message
    assert "dataset of another name" in message
    assert len(open_dataset(memory_store, "d").commits()) == 1


@pytest.mark.parametrize(("field", "value"), [("dtype", "uint32"), ("bos", 7), ("eos", None)])
def test_commits_of_one_dataset_agree(memory_store: Backend, field: str, value: Any) -> None:
    write_commit(memory_store, "d", SPLITS)
    docs = documents([3], dtype="uint32" if field == "dtype" else "uint16")
    with pytest.raises(DataError, match=f"This {field} is not the one of dataset d"):
        write_commit(memory_store, "d", {"train": [docs]}, job="b", **{field: value})
    retire(open_dataset(memory_store, "d").log, [0], references_of("d"))
    write_commit(memory_store, "d", {"train": [docs]}, job="b", **{field: value})  # nobody to agree with


def commit_now(dataset: Dataset, segments: Any, **changes: Any) -> Any:
    given = {"job": JOB, "tokenizer": metadata_digest(TOKENIZER), "dtype": "uint16", **changes}
    return dataset.append_commit(segments=segments, **given)


def test_incomplete_commits_are_refused(memory_store: Backend) -> None:
    store_tokenizer(memory_store, TOKENIZER)
    dataset = create_or_open(memory_store, "d")
    units = sealed_units(memory_store, "d")
    (first, seal), second = units["train"]
    missing = (5, seal)
    wrong = (first, replace(seal, digest="0" * 32))
    for segments, match in [
        ({}, "nothing to commit"),
        ({"train": []}, "nothing to commit"),
        ({"train": [missing]}, "not sealed"),
        ({"train": [wrong]}, "not sealed"),
        ({"train": [(first, replace(seal, tokens=12))]}, "not sealed"),
        ({"train": [second, (first, seal)]}, "ascending"),
        ({"train": [(first, seal), (first, seal)]}, "ascending"),
        ({"Train!": [(first, seal)]}, "name that cannot be used"),
        ({"held_out": [(first, seal)]}, "not sealed|does not belong"),
    ]:
        with pytest.raises(DataError, match=match):
            commit_now(dataset, segments)
    with pytest.raises(DataError, match="does not belong"):
        commit_now(dataset, units, dtype="uint32")
    with pytest.raises(ObjectNotFound, match="tokenizer is not on the store"):
        commit_now(dataset, units, tokenizer="0" * 32)
    assert dataset.commits() == []
    assert list_datasets(memory_store) == []
    flip(memory_store, tokenizer_key(metadata_digest(TOKENIZER)), 3)
    with pytest.raises(CorruptData, match="tokenizers/"):
        commit_now(dataset, units)
    assert dataset.commits() == []


def test_splits_without_segments_are_left_out(memory_store: Backend) -> None:
    store_tokenizer(memory_store, TOKENIZER)
    dataset = create_or_open(memory_store, "d")
    commit = commit_now(dataset, {**sealed_units(memory_store, "d"), "test": []}, extra={"skipped": 3})
    assert sorted(commit.manifests) == ["held_out", "train"]
    assert commit.body["extra"] == {"skipped": 3}


def test_a_job_is_committed_once(memory_store: Backend) -> None:
    first = write_commit(memory_store, "d", SPLITS)
    again = write_commit(memory_store, "d", SPLITS)
    dataset = open_dataset(memory_store, "d")
    assert again.digest == first.digest
    assert dataset.log.head() == 1
    assert [commit.job for commit in dataset.commits()] == [JOB]
    with pytest.raises(Conflict, match="committed already"):
        commit_now(dataset, {"train": sealed_units(memory_store, "d")["train"]}, eos=0)


def test_racing_writers_of_one_job_make_one_commit(memory_store: Backend) -> None:
    store_tokenizer(memory_store, TOKENIZER)
    units = sealed_units(memory_store, "d")
    barrier, found = Barrier(8), []

    def work() -> None:
        dataset = create_or_open(memory_store, "d")
        barrier.wait()
        found.append(commit_now(dataset, units).digest)

    threads = [Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert open_dataset(memory_store, "d").log.head() == 1


class _Interrupted:
    """A backend that calls a function just before the creation of the first log entry."""

    def __init__(self, store: Backend, other: Any) -> None:
        self._store = store
        self._other = other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if "/log/" in key and self._other:
            other, self._other = self._other, None
            other()
        return self._store.put_if_absent(key, data)


def test_what_others_commit_meanwhile_is_looked_at(memory_store: Backend) -> None:
    """The earlier checks hold for the log that gets the entry."""
    store_tokenizer(memory_store, TOKENIZER)

    def attempt(name: str, other: Any, **changes: Any) -> Any:
        units = sealed_units(memory_store, name)
        backend: Any = _Interrupted(memory_store, other)
        return commit_now(create_or_open(backend, name), units, **changes)

    def other_job(name: str, **changes: Any) -> Any:
        return lambda: write_commit(memory_store, name, {"train": [documents([3])]}, job="b", **changes)

    assert attempt("a", other_job("a", eos=None)).number == 1
    with pytest.raises(DataError, match="This tokenizer"):
        attempt("b", other_job("b", tokenizer=b"{}", eos=None))
    with pytest.raises(DataError, match="This eos"):
        attempt("c", other_job("c", eos=5))

    def given_up() -> None:
        log = create_or_open(memory_store, "e").log
        retire(log, [], references_of("e"), objects=[job_folder("e", JOB) + "/"])

    with pytest.raises(Conflict, match="retired"):
        attempt("e", given_up)
    assert open_dataset(memory_store, "e").commits() == []
    assert attempt("f", lambda: write_commit(memory_store, "f", SPLITS, eos=None)).number == 0


def test_retired_commits_are_gone_and_their_job_is_over(memory_store: Backend) -> None:
    write_commit(memory_store, "d", SPLITS)
    write_commit(memory_store, "d", {"train": [documents([9], seed=4)]}, job="second")
    dataset = open_dataset(memory_store, "d")
    units = sealed_units(memory_store, "d")
    retire(dataset.log, [0], references_of("d"))
    assert [commit.number for commit in dataset.commits()] == [1]
    with pytest.raises(DataError, match="Commit 0 of dataset d was retired"):
        dataset.commit(0)
    with pytest.raises(DataError, match="Commit 9 of dataset d is not there"):
        dataset.commit(9)
    dataset.check_open(metadata_digest(b"third"))
    with pytest.raises(Conflict, match="new job"):
        dataset.check_open(JOB)
    with pytest.raises(Conflict, match="new job"):
        write_commit(memory_store, "d", SPLITS)
    collect_garbage(dataset.log, references_of("d"), grace=0)
    with pytest.raises(Conflict, match="new job"):  # not: segments are missing, run the job again
        commit_now(dataset, units, eos=0)


def test_references_are_all_that_a_commit_owns(memory_store: Backend) -> None:
    first = write_commit(memory_store, "d", SPLITS)
    write_commit(memory_store, "d", {"train": [documents([9], seed=4)]}, job="second")
    write_commit(memory_store, "other", SPLITS)
    names = references("d", first.body)
    owned = {info.key for info in memory_store.list_objects("datasets/d") if info.key.startswith(tuple(names))}
    dataset = open_dataset(memory_store, "d")
    retire(dataset.log, [0], references_of("d"))
    garbage = collect_garbage(dataset.log, references_of("d"), grace=0)
    assert set(garbage.objects) == owned
    assert len(owned) == 2 + 3 * 10
    assert verify_dataset(memory_store, dataset) == []
    assert verify_dataset(memory_store, open_dataset(memory_store, "other")) == []


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault.CRASH_BEFORE, marks=pytest.mark.slow),
        Fault.CRASH_AFTER,
        pytest.param(Fault.UNAVAILABLE, marks=pytest.mark.slow),
        Fault.LOST,
    ],
)
def test_a_stop_at_any_call_leaves_the_last_commit_or_the_new_one(memory_store: Backend, fault: Fault) -> None:
    first, second = {"train": [documents([5])]}, {"train": [documents([9], seed=4)]}
    call, seen = 0, set()
    while True:
        name = f"d{call}"
        write_commit(memory_store, name, first)
        faulty = FaultyBackend(memory_store, {call: fault})
        finished = True
        try:
            write_commit(faulty, name, second, job="second")
        except (Crash, StoreUnavailable):
            finished = False
        dataset = open_dataset(memory_store, name)
        numbers = [commit.number for commit in dataset.commits()]
        assert numbers in ([0], [0, 1])
        assert numbers == [0, 1] or not finished
        assert verify_dataset(memory_store, dataset) == []
        seen.add(len(numbers))
        write_commit(memory_store, name, second, job="second")  # running the job again ends it
        assert [commit.number for commit in dataset.commits()] == [0, 1]
        assert verify_dataset(memory_store, dataset) == []
        if len(faulty.calls) <= call:
            break
        call += 1
    assert call > 15
    assert seen == {1, 2}


def test_an_error_says_cause_value_and_remedy(memory_store: Backend) -> None:
    write_commit(memory_store, "docs", SPLITS)
    steps: list[Callable[[], object]] = [
        lambda: open_dataset(memory_store, "dosc"),
        lambda: create_or_open(memory_store, "a/b"),
        lambda: open_dataset(memory_store, "docs").commit(7),
    ]
    for step in steps:
        with pytest.raises(FmscaleError) as caught:
            step()
        assert caught.value.cause
        assert caught.value.found is not None
        assert caught.value.remedy
