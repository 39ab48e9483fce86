"""Answers during training: those of the checkpoint that is saved at the same step, at any stage and size."""

from pathlib import Path

import pytest

from fmscale.infer import generate
from fmscale.infer.load import open_trained
from tests.helpers.ranks import run_ranks
from tests.train.runs import events_of, make_corpus, train_here, write_config

PROMPTS = ["12 + 30 =", "a", "the sum"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
def test_a_run_tells_the_answers_of_its_model(store: str, tmp_path: Path, ranks: int, stage: int) -> None:
    run = f"stage{stage}"
    asked = ("evaluation.prompts=" + str(PROMPTS), "evaluation.prompt_tokens=12", "evaluation.every=2")
    path = write_config(tmp_path, store)
    keys = (f"train.run={run}", f"train.zero_stage={stage}", "train.steps=4", "checkpoint.every=2", *asked)
    run_ranks(train_here, ranks, str(path), keys, timeout=120)
    told = {event["step"]: event["texts"] for event in events_of(tmp_path / run, "generations")}
    assert list(told) == [2, 4]
    for step, texts in told.items():
        trained = open_trained(f"{store}#{run}@{step}")
        prompts = [trained.encode(prompt) for prompt in PROMPTS]
        found = generate(
            trained.model, prompts, max_tokens=12, eos=trained.eos, vocabulary=trained.tokenizer.vocab_size
        )
        assert texts == [
            {"prompt": prompt, "text": trained.tokenizer.decode(one.tokens)}
            for prompt, one in zip(PROMPTS, found, strict=True)
        ]
