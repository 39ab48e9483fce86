"""The trace of steps and documents agrees with the loader's deliveries, also after bans and quarantine."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.config import SourceConfig
from fmscale.data.open import open_loader
from fmscale.data.plan.batch_schedule import BatchSchedule
from fmscale.data.plan.order_log import OrderLog, replay
from fmscale.data.plan.plan import Plan
from fmscale.data.provenance.delivery import SCHEMA, DeliveryRecord, document_bytes, read_records
from fmscale.data.provenance.trace import TraceEntry, trace_document, trace_step
from fmscale.errors import DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.open import open_store
from tests.helpers.corpus import Corpus, T, store_corpus
from tests.helpers.segments import Document, flip

BATCH = 8
BATCHES = BatchSchedule([(0, BATCH)])


@dataclass(frozen=True)
class Delivered:
    """One received sample."""

    k: int
    step: int
    source: int
    row: int
    documents: list[str]


def deliver(store: Backend, steps: int, records: Path | None = None, **options: object) -> dict[int, Delivered]:
    """Samples of the run's first steps, from its loader."""
    arguments: dict[str, object] = {
        "sequence_length": T,
        "batch": BATCH,
        "seed": 3,
        "run": "demo",
        "document_ids": True,
        **({} if "sources" in options else {"dataset": "corpus"}),
    }
    found = {}
    with open_loader(store, **(arguments | options)) as loader:  # type: ignore[arg-type]
        record = DeliveryRecord(records, "uint16") if records else None
        for batch in loader:
            if batch.step >= steps:
                break
            if record:
                record.add(batch)
            documents: list[list[str]] = [[] for _ in range(batch.rows)]
            for span in batch.spans:
                documents[span.row].append(document_bytes(span.document).hex())
            for i in range(batch.rows):
                k = int(batch.k[i])
                found[k] = Delivered(k, batch.step, int(batch.row_source[i]), int(batch.row[i]), documents[i])
        if record:
            record.close()
    return found


def plan_of(store: Backend) -> Plan:
    plan = replay(Log(store, "runs/demo", RUN_KINDS))
    assert plan is not None
    return plan


def by_id(*corpora: Corpus) -> dict[str, Document]:
    return {doc.id.hex(): doc for corpus in corpora for docs in corpus.commits for doc in docs}


def check_steps(
    store: Backend, delivered: dict[int, Delivered], documents: dict[str, Document], names: list[str]
) -> None:
    """Traced steps equal delivered steps, with the source of each document."""
    plan = plan_of(store)
    for step in sorted({k // BATCH for k in delivered}):
        traced = trace_step(store, plan, BATCHES, step)
        assert [t.k for t in traced] == sorted(t.k for t in traced)
        for k in range(step * BATCH, (step + 1) * BATCH):
            mine = [t for t in traced if t.k == k]
            assert [t.document for t in mine] == delivered[k].documents
            for t in mine:
                doc = documents[t.document]
                assert (t.step, t.row) == (step, delivered[k].row)
                assert (t.source, t.start, t.stop) == (doc.source, doc.start, doc.stop)
                assert t.dataset == names[delivered[k].source]
        assert {t.k for t in traced} == set(range(step * BATCH, (step + 1) * BATCH))


def check_documents(
    store: Backend, delivered: dict[int, Delivered], documents: dict[str, Document], chosen: Iterable[str]
) -> list[list[TraceEntry]]:
    plan, steps = plan_of(store), len(delivered) // BATCH
    out = []
    for name in chosen:
        traced = trace_document(store, plan, BATCHES, name, steps=steps)
        held = [(d.step, d.k, d.row) for _, d in sorted(delivered.items()) if name in d.documents]
        assert [(t.step, t.k, t.row) for t in traced] == held
        doc = documents[name]
        for t in traced:
            assert (t.document, t.source, t.start, t.stop) == (name, doc.source, doc.start, doc.stop)
        out.append(traced)
    return out


@pytest.fixture
def store(tmp_path: Path) -> Backend:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def corpus(store: Backend) -> Corpus:
    return store_corpus(store)


def some_documents(corpus: Corpus) -> list[str]:
    """Short, long (in many rows), at ends of segments and commits; the very last is in the dropped tail."""
    first, second = corpus.commits
    longest = max(first, key=lambda doc: len(doc.tokens))
    return [doc.id.hex() for doc in (first[0], first[166], first[300], longest, second[0], second[44], second[-1])]


def test_steps_and_documents_over_several_epochs(store: Backend, corpus: Corpus) -> None:
    rows = len(corpus.rows())
    delivered = deliver(store, 2 * rows // BATCH + 3)
    documents = by_id(corpus)
    few = {k: one for k, one in delivered.items() if k < 12 * BATCH}
    check_steps(store, few, documents, ["corpus"])
    found = check_documents(store, delivered, documents, some_documents(corpus))
    assert len(found[0]) >= 2, "it came up once an epoch"
    assert len({t.row for t in found[3]}) > 1, "a long document is in several rows"


def test_after_a_ban_of_documents(store: Backend, corpus: Corpus) -> None:
    deliver(store, 1)
    banned = [corpus.commits[0][10].id, corpus.commits[1][40].id]
    OrderLog(Log(store, "runs/demo", RUN_KINDS)).ban_documents(open_dataset(store, "corpus"), banned, from_k=400)
    steps = 2 * len(corpus.rows()) // BATCH
    delivered = deliver(store, steps)
    names = {one.hex() for one in banned}
    assert any(names & set(one.documents) for k, one in delivered.items() if k < 400)
    assert not any(names & set(one.documents) for k, one in delivered.items() if k >= 400)
    plan = plan_of(store)
    ks = np.arange(400, steps * BATCH, dtype=np.uint64)
    replaced = ks[plan.samples(ks).row != Plan(plan.stages).samples(ks).row].tolist()
    assert replaced
    substitutes = {name for k in replaced for name in delivered[k].documents}
    check_documents(store, delivered, by_id(corpus), [*names, *sorted(substitutes)[:4], *some_documents(corpus)])
    around = {k: delivered[k] for k in range(BATCH * 45, BATCH * 55)}
    check_steps(store, around, by_id(corpus), ["corpus"])


def test_after_a_quarantine(store: Backend, corpus: Corpus) -> None:
    shards = [i.key for i in store.list_objects("datasets/corpus/segments") if "/tokens/c/" in i.key]
    flip(store, shards[0], 5)
    delivered = deliver(store, len(corpus.rows()) // BATCH)
    plan = plan_of(store)
    assert plan.bans
    first, stop = plan.bans[0].rows[0]
    lost = {
        doc.id.hex()
        for doc, end in zip(corpus.commits[0], np.cumsum([len(d.tokens) for d in corpus.commits[0]]), strict=True)
        if first * T < end - len(doc.tokens) and end < stop * T
    }
    assert lost
    assert not any(lost & set(one.documents) for one in delivered.values())
    check_steps(store, {k: delivered[k] for k in range(20 * BATCH)}, by_id(corpus), ["corpus"])
    # Only tokens are damaged: the document tables still name their documents.
    assert all(not traced for traced in check_documents(store, delivered, by_id(corpus), sorted(lost)[:3]))
    check_documents(store, delivered, by_id(corpus), some_documents(corpus)[3:])


def test_a_mixture_names_the_dataset(store: Backend, corpus: Corpus) -> None:
    other = store_corpus(store, "other", seed=5)
    sources = [SourceConfig(dataset="corpus", weight=3), SourceConfig(dataset="other", weight=1)]
    delivered = deliver(store, 40, sources=sources)
    documents = by_id(corpus, other)
    check_steps(store, delivered, documents, ["corpus", "other"])
    seen = sorted({name for one in delivered.values() if one.source == 1 for name in one.documents})
    found = check_documents(store, delivered, documents, [seen[0], seen[-1], *some_documents(corpus)[:2]])
    assert {t.dataset for t in found[0]} == {"other"}


def test_what_is_not_there_is_said(store: Backend, corpus: Corpus) -> None:
    deliver(store, 1)
    plan = plan_of(store)
    with pytest.raises(DataError, match="not in the split"):
        trace_document(store, plan, BATCHES, "00" * 16, steps=10)
    with pytest.raises(DataError, match="32 hexadecimal"):
        trace_document(store, plan, BATCHES, "zz", steps=10)
    with pytest.raises(DataError, match="from 0"):
        trace_step(store, plan, BATCHES, -1)


def run(store: Backend, command: str, *arguments: str, run: str = "demo") -> tuple[int, str]:
    place = store.local_path("x")
    assert place is not None
    base = ["dataset", command, "--store", str(place.parent), "--run", run]
    result = CliRunner().invoke(build_app(), [*base, *arguments])
    return result.exit_code, result.output


def test_trace_on_the_command_line(store: Backend, corpus: Corpus) -> None:
    delivered = deliver(store, 12)
    code, output = run(store, "trace", "--batch", "8", "--step", "3", "--json")
    assert code == 0
    third = [asdict(t) | {"step": 3} for t in trace_step(store, plan_of(store), BATCHES, 2)]
    assert json.loads(output) == third
    assert {t["k"] for t in json.loads(output)} == set(range(16, 24))

    name = delivered[25].documents[0]
    code, output = run(store, "trace", "--batch", "8", "--document", name, "--steps", "12", "--json")
    assert code == 0
    assert [t["k"] for t in json.loads(output)] == [k for k in range(96) if name in delivered[k].documents]
    code, output = run(store, "trace", "--batch", "8", "--step", "4")
    assert code == 0
    assert delivered[25].documents[0][:8] in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --step or --document"),
        (["--step", "1", "--document", "00" * 16], "either --step or --document"),
        (["--step", "0"], "Invalid value for '--step'"),
        (["--document", "xyz"], "32 hexadecimal digits"),
        (["--document", "00" * 16], "not in the split train"),
    ],
)
def test_trace_errors_say_what_to_change(store: Backend, corpus: Corpus, arguments: list[str], message: str) -> None:
    deliver(store, 1)
    code, output = run(store, "trace", "--batch", "8", *arguments)
    assert code == 2
    assert message in " ".join(output.split())
    assert "Traceback" not in output


def test_a_run_that_was_never_begun_has_no_trace(store: Backend, corpus: Corpus) -> None:
    code, output = run(store, "trace", "--batch", "8", "--step", "1")
    assert code == 2
    assert "It has none yet: `fmscale train` makes one." in " ".join(output.split())
    deliver(store, 1)
    for command in ("trace", "audit"):
        code, output = run(
            store, command, *(["--batch", "8", "--step", "1"] if command == "trace" else ["x"]), run="dmo"
        )
        assert code == 2
        assert "Did you mean demo?" in output


def test_audit_on_the_command_line(store: Backend, corpus: Corpus, tmp_path: Path) -> None:
    steps = len(corpus.rows()) // BATCH
    paths = [str(tmp_path / f"rank{rank}.arrow") for rank in range(2)]
    for rank, path in enumerate(paths):
        deliver(store, steps, Path(path), dp_rank=rank, dp_size=2)
    code, output = run(store, "audit", *paths, "--json")
    report = json.loads(output)
    assert code == 0, output
    assert report["problems"] == []
    assert (report["rows"], report["first_k"], report["last_k"]) == (steps * BATCH, 0, steps * BATCH - 1)
    assert report["entropy_ratio"] > 0.9
    code, output = run(store, "audit", *paths)
    assert code == 0
    assert "none" in output
    assert "0 delivered again after a resume" in output

    code, output = run(store, "audit", paths[0], "--json")
    assert code == 1, "half of the samples were never delivered"
    assert json.loads(output)["missing_samples"] > 0

    rows = read_records([Path(path) for path in paths]).to_pylist()
    rows[7]["digest"] = rows[8]["digest"]
    with pa.OSFile(str(tmp_path / "forged.arrow"), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    code, output = run(store, "audit", str(tmp_path / "forged.arrow"), "--json")
    assert code == 1
    assert json.loads(output)["wrong_bytes"] == 1
    assert "not those stored" in json.loads(output)["problems"][0]

    for wrong in (tmp_path / "none.arrow", tmp_path):
        code, output = run(store, "audit", str(wrong))
        assert code == 2
        assert "no such delivery record" in output
        assert "FOLDER/RUN/delivery/*.arrow" in " ".join(output.split())
