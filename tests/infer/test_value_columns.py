"""Columns of a model's values: the same as of documents read alone, resumable, and computed once; rankings scored."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.data.samples.protocol import Sample
from fmscale.data.samples.rendered import values_maker
from fmscale.data.tokenizers.tokenizer import load_tokenizer
from fmscale.errors import ConfigError, DataError
from fmscale.infer.rankings import score_rankings
from fmscale.infer.score import logps, scores
from fmscale.infer.value_columns import ValueColumns, derive_values, read_samples
from fmscale.models import Decoder, build
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.columns import column_key, open_column
from fmscale.store.datasets.dataset import Dataset, open_dataset
from fmscale.store.datasets.tokenizers import store_tokenizer
from fmscale.store.datasets.verify import verify_dataset
from fmscale.store.doctor.probe import require_writable
from fmscale.store.open import open_store
from tests.helpers.rendered import random_rankings, rendered_dataset
from tests.infer.trained_run import MODEL, save_run, store_texts

ROOT = Path(__file__).parents[2]
MAKER = values_maker("logps", "0" * 32, "fp32")


def model_of(score: bool = False, vocab: int = 250) -> Decoder:
    model = build(replace(MODEL, score=score), vocab_size=vocab)
    model.init_weights(torch.Generator().manual_seed(0))
    if score:
        torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(1))
    return model.eval()


def pairs(store: Backend) -> Dataset:
    return rendered_dataset(store, "pairs", [random_rankings(30, 0), random_rankings(5, 1)])


def derive(store: Backend, values: Any = logps, model: Decoder | None = None, **options: Any) -> ValueColumns:
    return derive_values(store, "pairs", "train", "reference", MAKER, model or model_of(), values, **options)


def stored(store: Backend) -> Any:
    manifest = open_dataset(store, "pairs").commits()[0].manifests["train"]
    return open_column(store, column_key("pairs", manifest.digest, "reference", MAKER))


def samples_of(dataset: Dataset) -> list[Sample]:
    rows = dataset.commits()[0].manifests["train"].rows()
    return [each for row in rows for _, part in read_samples(dataset.backend, row) for each in part]


@torch.no_grad()
def alone(model: Decoder, sample: Sample) -> list[float]:
    """Log-probs of a sample's documents, each read alone with all its logits."""
    out, at = [], 0
    for piece in sample.pieces:
        tokens, labels, weights = (
            torch.from_numpy(sample.tensors[n][at : at + piece]) for n in ("tokens", "labels", "weights")
        )
        table = model.head(model(tokens[None]))[0].log_softmax(-1)
        out.append(float((table.gather(1, labels[:, None])[:, 0] * weights).sum()))
        at += piece
    return out


def test_a_column_has_the_log_probs_of_documents_read_alone_and_is_computed_once(memory_store: Backend) -> None:
    dataset, calls, told = pairs(memory_store), list[int](), list[tuple[int, int]]()

    def counted(model: Any, given: Any) -> torch.Tensor:
        calls.append(len(given["spans"]) - 1)
        return logps(model, given)

    result = derive(memory_store, counted, progress=lambda *place: told.append(place))
    assert (result.new, result.records, result.documents, result.resumed, result.bad) == (True, 35, 2, 0, 0)
    assert (sum(calls), told) == (70, [(30, 35), (35, 35)])
    column = stored(memory_store)
    model = model_of()
    wanted = [alone(model, sample) for sample in samples_of(dataset)]
    np.testing.assert_allclose(column.take(np.arange(35, dtype=np.uint64)), wanted, rtol=1e-5)
    again = derive(memory_store, counted)
    assert (again.new, sum(calls)) == (False, 70), "a second job computes no forward"
    assert verify_dataset(memory_store, dataset) == []


def test_a_job_that_ends_early_shows_nothing_and_goes_on(memory_store: Backend) -> None:
    pairs(memory_store)
    forwards = []

    def dies(model: Any, given: Any) -> torch.Tensor:
        forwards.append(given)
        if len(forwards) == 2:
            raise KeyboardInterrupt
        return logps(model, given)

    with pytest.raises(KeyboardInterrupt):
        derive(memory_store, dies)
    assert stored(memory_store) is None
    result = derive(memory_store, dies)
    assert (result.resumed, len(forwards)) == (1, 3)
    assert stored(memory_store).records == 35


@pytest.mark.slow
def test_a_job_that_is_killed_at_any_write_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    save_run(store_texts(tmp_path), "base", (1,))
    store = open_store(str(tmp_path / "store"))
    pairs(store)
    require_writable(store)
    job = ("--column", "reference", "--with", "base@1", "--device", "cpu", "--threads", "1", "--json")
    out = subprocess.check_output(
        [sys.executable, "-m", "tests.helpers.deriver", str(tmp_path), "pairs", *job], cwd=ROOT, text=True, timeout=400
    )
    lines = [json.loads(line) for line in out.splitlines() if "killed" in line]
    # Two parts and the last object, each before and after.
    assert [line["killed"] for line in lines] == [True] * 6 + [False]
    folder = next(tmp_path.glob("6/datasets/pairs/columns/*/reference-*")).relative_to(tmp_path / "6")
    before = {path.name for path in (tmp_path / "store" / folder.parent).iterdir()}
    assert not any(name.startswith("reference") for name in before)
    assert [line["visible"] - len(before) for line in lines] == [0] * 5 + [1, 1]
    stored = [{p.name: p.read_bytes() for p in (Path(line["store"]) / folder).iterdir()} for line in lines]
    assert all(each == stored[-1] for each in stored), "the last job was not disturbed"
    assert len(stored[-1]) == 3


def test_records_that_no_column_can_hold_are_refused(memory_store: Backend) -> None:
    rendered_dataset(memory_store, "pairs", [random_rankings(3, 0), random_rankings(3, 1, answers=3)])
    with pytest.raises(DataError, match="different numbers of texts") as caught:
        derive(memory_store)
    assert caught.value.found == "3 and 2"
    assert stored(memory_store) is None


def test_a_model_that_cannot_read_the_texts_is_refused(memory_store: Backend) -> None:
    theirs = load_tokenizer("bytes")
    store_tokenizer(memory_store, theirs.to_json())
    rendered_dataset(memory_store, "pairs", [random_rankings(3, 0)], tokenizer=theirs.digest)
    with pytest.raises(ConfigError, match="does not have") as beyond:
        derive(memory_store, model=model_of(vocab=9))
    assert "the vocabulary has 9" in str(beyond.value)
    with pytest.raises(ConfigError, match="has no score"):
        derive(memory_store, scores)
    with pytest.raises(DataError, match="no rendered records in the split heldout"):
        score_rankings(model_of(score=True), memory_store, "pairs", "heldout")
    with pytest.raises(ConfigError, match="with another tokenizer than the model's"):
        derive(memory_store, tokenizer="e" * 32)
    assert derive(memory_store, tokenizer=theirs.digest).new


def test_rankings_are_scored_as_by_hand(memory_store: Backend) -> None:
    dataset = rendered_dataset(memory_store, "ranks", [random_rankings(9, n, answers=n + 2) for n in range(2)])
    model = model_of(score=True)
    found = score_rankings(model, memory_store, "ranks", "train")
    values = []
    with torch.no_grad():
        for sample in samples_of(dataset):
            at, mine = 0, []
            for piece in sample.pieces:
                tokens, labels = (sample.tensors[name][at : at + piece] for name in ("tokens", "labels"))
                last = int(sample.tensors["weights"][at : at + piece].nonzero()[0].max())
                whole = np.concatenate((tokens[: last + 1], labels[last : last + 1]))
                mine.append(float(model.score(model(torch.from_numpy(whole)[None])[0, -1])))
                at += piece
            values.append(mine)
    order = [[mine[i] > mine[j] for i in range(len(mine)) for j in range(i + 1, len(mine))] for mine in values]
    assert (found.rankings, found.pairs) == (18, 9 + 27)
    assert found.accuracy == pytest.approx(np.mean([np.mean(each) for each in order]))
    assert found.best == pytest.approx(np.mean([mine[0] == max(mine) for mine in values]))
    assert found.margin == pytest.approx(np.mean([mine[0] - mine[-1] for mine in values]), rel=1e-4)
    some = score_rankings(model, memory_store, "ranks", "train", limit=9)
    assert (some.rankings, some.pairs) == (9, 9)


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(build_app(), list(words))
    return result.exit_code, result.stdout, result.stderr


def test_the_verbs(tmp_path: Path) -> None:
    url = store_texts(tmp_path)
    save_run(url, "base", (1, 2))
    save_run(url, "reward", (1,), replace(MODEL, score=True))
    store = open_store(url)
    pairs(store)
    words = ("dataset", "derive", f"{url}/pairs", "--column", "reference", "--device", "cpu", "--json")
    status, out, err = run(*words, "--with", "base@1")
    assert status == 0, err
    made = json.loads(out)
    assert (made["with"], made["precision"], made["records"], made["new"]) == ("base@1", "fp32", 35, True)
    _, newest, _ = run(*words, "--with", "base")
    assert json.loads(newest)["folders"] != made["folders"]
    for wrong, remedy in (
        (("--with", "base@7"), "1, 2"),
        ((), "--with RUN@STEP"),
        (("--with", "base", "--column", "size"), "--column size"),
    ):
        status, _, err = run(*words, *wrong)
        assert status == 2
        assert remedy in err
    status, out, err = run(
        "score", f"{url}#reward", "--dataset", "pairs", "--split", "train", "--column", "liked", "--json"
    )
    assert status == 0, err
    found = json.loads(out)
    assert (found["rankings"], found["accuracy"], found["score"]) == (35, 0.0, 0.0), "the score begins at 0"
    assert store.exists(f"{found['folders'][0]}/column.arrows")
    status, _, err = run("score", f"{url}#base", "--dataset", "pairs", "--split", "train")
    assert (status, "objective.kind: reward" in err) == (2, True)
