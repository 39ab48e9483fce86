"""Tokens that a run does not train on are said: ends of commits below a row, and documents without a target."""

from pathlib import Path

import pytest

from fmscale.config import load_config
from fmscale.data.ingest import ingest
from fmscale.errors import DataError
from fmscale.train.preflight.preflight import check_run
from fmscale.train.run import run_training
from tests.helpers.deepspeed_numbers import restart_numbers

CONFIG = """
store: {{url: {store}}}
data: {{sequence_length: 64, sources: [{{dataset: d}}]}}
model: {{num_layers: 1, dim: 16, num_heads: 1, max_seq_len: 64, vocab_size: 272}}
batch: {{global_batch: 2, micro_batch: 2}}
train: {{run: r, folder: {folder}, steps: 3, log_every: 1, precision: fp32, nonfinite_limit: 2, zero_stage: 0}}
schedule: {{warmup_steps: 0}}
"""


def make(folder: Path, texts: list[str], commits: int, *, eos: bool) -> Path:
    """The config of a run on a dataset of some commits, each with these texts."""
    for number in range(commits):
        (folder / f"{number}.jsonl").write_text("".join(f'{{"text": "{text}", "n": {number}}}\n' for text in texts))
        source = [str(folder / f"{number}.jsonl")]
        ingest(source, store=str(folder / "store"), dataset="d", tokenizer="bytes", workers=1, eos=eos)
    path = folder / "run.yaml"
    path.write_text(CONFIG.format(store=folder / "store", folder=folder))
    return path


def test_documents_of_a_single_token_are_named_as_the_cause(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make(tmp_path, ["a"] * 1000, 1, eos=False)
    [warning] = [text for text in check_run(load_config(path), 1).warnings if "targets" in text]
    assert "dataset d has few or no targets to train on: 1,000 tokens in 1,000 documents" in warning
    restart_numbers()
    with pytest.raises(DataError, match="no sample of 2 steps in a row has a target") as caught:
        run_training(load_config(path), show=lambda record: None, event=lambda record: None)
    assert (caught.value.found, "EOS" in caught.value.remedy) == ("steps 1 to 2", True)
    assert "step 1 was not applied: it has nothing to train on" in caplog.text


def test_tokens_in_no_row_are_said_with_a_warning_from_some_percent_on(tmp_path: Path) -> None:
    """Three commits of 100 tokens in rows of 65: 35 of each are in no row."""
    path = make(tmp_path, ["c" * 99], 3, eos=True)
    found = check_run(load_config(path, ("train.steps=1",)), 1)
    assert [(facts.tokens, facts.rows, facts.left_out) for facts in found.sources] == [(300, 3, 105)]
    [warning] = [text for text in found.warnings if "leave out" in text]
    assert "rows leave out 105 of the 300 tokens of dataset d, 35.0%: the ends of its 3 commits" in warning
    assert not [
        text for text in check_run(load_config(path, ("data.sequence_length=48",)), 1).warnings if "out" in text
    ]
