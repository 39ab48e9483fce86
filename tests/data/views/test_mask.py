"""Masks: made from ids or a predicate, named by their content, verified when they are loaded."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from fmscale.data.views.mask import document_id, find_documents, load_mask, make_mask, mask_key
from fmscale.errors import CorruptData, DataError, ObjectNotFound
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from tests.helpers.segments import documents, flip, write_commit


def test_by_predicate(store: Backend) -> None:
    content = [documents([5, 9, 30, 2], seed=1), documents([50, 1], seed=2)]
    write_commit(store, "corpus", {"train": content})
    dataset = open_dataset(store, "corpus")

    def long(table: pa.Table) -> np.ndarray:
        return np.asarray(pc.greater(table["tokens"], 8))

    seen: list[None] = []
    found = find_documents(dataset, where=long, advance=lambda: seen.append(None))
    assert found.id.tolist() == [content[0][1].id, content[0][2].id, content[1][0].id]
    assert found.segment.tolist() == [0, 0, 1]
    assert found.start.tolist() == [5, 14, 0]
    assert found.stop.tolist() == [14, 44, 50]
    assert len(seen) == 2
    mask = load_mask(store, "corpus", make_mask(dataset, found))
    assert mask.documents.stop.tolist() == [14, 44, 50]


def test_ids_that_are_not_there(memory_store: Backend) -> None:
    content = documents([5, 9])
    write_commit(memory_store, "corpus", {"train": [content]})
    dataset = open_dataset(memory_store, "corpus")
    with pytest.raises(DataError, match="1 document ids are not in the split train") as error:
        find_documents(dataset, ids=[content[0].id, b"x" * 16])
    assert (b"x" * 16).hex() in str(error.value)
    with pytest.raises(DataError, match="no document"):
        make_mask(dataset, find_documents(dataset, where=lambda table: np.zeros(len(table), dtype=bool)))


def test_only_some_commits(memory_store: Backend) -> None:
    for job in ("a", "b"):
        write_commit(memory_store, "corpus", {"train": [documents([5], seed=ord(job))]}, job=job)
    dataset = open_dataset(memory_store, "corpus")
    last = dataset.commits()[-1].number
    assert find_documents(dataset, commits=[last]).commit.tolist() == [last]
    assert len(find_documents(dataset).commit) == 2


def test_damage_is_seen(memory_store: Backend) -> None:
    write_commit(memory_store, "corpus", {"train": [documents([5, 9])]})
    dataset = open_dataset(memory_store, "corpus")
    digest = make_mask(dataset, find_documents(dataset))
    with pytest.raises(ObjectNotFound):
        load_mask(memory_store, "corpus", "0" * 32)
    key = mask_key("corpus", digest)
    flip(memory_store, key, len(memory_store.get(key)) // 2)
    with pytest.raises(CorruptData, match="digest"):
        load_mask(memory_store, "corpus", digest)


@pytest.mark.parametrize("text", ["", "xyz", "00" * 15, "00" * 17])
def test_document_ids_have_32_digits(text: str) -> None:
    assert document_id(" " + "0a" * 16 + "\n") == b"\n" * 16
    with pytest.raises(DataError, match="32 hexadecimal"):
        document_id(text)
