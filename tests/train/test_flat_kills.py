"""kill -9 at three points of training on flat forwards, of records alone and with rows of tokens, at several sizes."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch

from fmscale.checkpoint.checkpoint import open_checkpoint
from fmscale.store.open import open_store
from tests.helpers.ranks import run_ranks
from tests.train.runs import delivered, make_corpus, train_here, write_config
from tests.train.test_flat import COMMON, MIXED, RECORDS, SPEC, make_notes
from tests.train.test_kills import OVERRIDES, check_equal, killed_until_complete

STEPS = 40
FLAT = (*COMMON, *OVERRIDES, "train.record_delivery=true", "model.dropout=0.1", f"train.steps={STEPS}")
DATA = {"alone": (RECORDS, SPEC), "mixed": (MIXED, SPEC)}
CONTENT = ["k", "step", "source", "row", "digest"]


def content(folder: Path) -> pa.Table:
    return delivered(folder).select(CONTENT).sort_by("k")


@pytest.mark.slow
@pytest.mark.parametrize(("data", "sizes"), [("alone", [1, 1, 1, 1]), ("mixed", [1, 2, 3, 4])])
def test_kills_change_no_sample_no_forward_and_no_weight(tmp_path: Path, data: str, sizes: list[int]) -> None:
    store = make_corpus(tmp_path)
    make_notes(open_store(store))
    path, overrides = write_config(tmp_path, store), (*FLAT, *DATA[data])
    kills = killed_until_complete(path, tmp_path / "killed", sizes, len(data) + sum(sizes), overrides, STEPS)
    run_ranks(train_here, sizes[-2], str(path), (*overrides, "train.run=whole"), timeout=240)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert content(killed).equals(content(whole)), "each k has one sample, the same at every size"
    assert kills == 3
    if len(set(sizes)) == 1:
        check_equal(whole, killed, kills)
        wanted, found = open_checkpoint(f"{store}#whole"), open_checkpoint(f"{store}#killed")
        assert [one.name for one in found.manifest.tensors] == [one.name for one in wanted.manifest.tensors]
        for one in wanted.manifest.tensors:
            assert torch.equal(found.tensor(one.name, one.state), wanted.tensor(one.name, one.state)), one.name
