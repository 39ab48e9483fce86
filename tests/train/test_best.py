"""The checkpoint with the lowest held-out loss is kept, over resumes and whatever comes after it."""

from pathlib import Path

import pytest

from fmscale.checkpoint import catalog
from fmscale.checkpoint.checkpoint import open_checkpoint
from fmscale.config import load_config
from fmscale.errors import ConfigError
from fmscale.store.open import open_store
from tests.helpers.ranks import run_ranks
from tests.train.runs import events_of, make_corpus, train_here, write_config

EVALUATED = (
    "data.sources.1.dataset=prose", "evaluation.every=1", "evaluation.best=words",
    "evaluation.sets=[{dataset: prose, name: words, rows: 8}]", "checkpoint.every=100", "checkpoint.keep_last=1",
)  # fmt: skip


def test_the_best_checkpoint_is_kept_and_found_by_name(tmp_path: Path) -> None:
    store = make_corpus(tmp_path)
    path = write_config(tmp_path, store)
    run_ranks(train_here, 2, str(path), (*EVALUATED, "train.steps=3"), timeout=120)
    run_ranks(train_here, 2, str(path), (*EVALUATED, "train.steps=5", "optimizer.lr=3"), timeout=120)
    # A resume pins its checkpoint as verified, so the best must outlive a second resume.
    run_ranks(
        train_here, 1, str(path), (*EVALUATED, "train.steps=6", "optimizer.lr=3", "batch.micro_batch=1"), timeout=120
    )
    losses = {event["step"]: event["heldout/words"] for event in events_of(tmp_path / "run", "evaluation")}
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    best = min(losses, key=losses.__getitem__)
    assert best == 3, "the rate of the second job must spoil the model"
    saved = [event["step"] for event in events_of(tmp_path / "run", "checkpoint")]
    assert sorted(set(saved)) == [1, 2, 3, 5, 6], "4 was neither better nor due"
    backend = open_store(store)
    found = catalog.list_checkpoints(backend, "run")
    assert [entry.step for entry in found] == [3, 5, 6], "the best beside the verified and the newest"
    chosen = open_checkpoint(f"{store}#run@best")
    assert chosen.step == 3
    assert chosen.meta["score"] == losses[3]
    fork = run_ranks(
        train_here, 1, str(path), ("train.run=fork", "train.resume=run@best", "train.steps=4"), timeout=120
    )
    assert fork[0]["first_step"] == 3
    with pytest.raises(ConfigError, match="no checkpoint with a held-out loss"):
        open_checkpoint(f"{store}#fork@best")
    with pytest.raises(ConfigError, match="not the name of a set"):
        load_config(str(path), ["evaluation.best=sums"])
