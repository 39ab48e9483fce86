"""Reward models in Hugging Face's format: transformers gives a text the score of `fmscale score`, and the way back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fmscale.checkpoint.checkpoint import open_checkpoint
from fmscale.checkpoint.read.meta import inherited
from fmscale.config import load_config
from fmscale.errors import ConfigError
from fmscale.exchange.import_run import open_source
from fmscale.store.datasets.columns import open_column
from fmscale.store.datasets.templates import ChatTemplate, store_template
from fmscale.store.open import open_store
from fmscale.train.init import find_init, with_model
from tests.exchange.foreign import CHATML, MODEL, library, tensors_of, write_folder
from tests.exchange.test_folder import run
from tests.infer.trained_run import save_run, store_texts

ANSWERS = [("the fox", "12 dogs", "no"), ("don't stop", "def f(x): return x", "lazy"), ("brown?", "naïve", "quick fox")]


def our_scores(store: str, name: str, folder: Path) -> np.ndarray:
    """Scores of the answers by `fmscale score`, [questions, 2]."""
    lines = [{"prompt": user(asked), "chosen": said(a), "rejected": said(b)} for asked, a, b in ANSWERS]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("--store", store, "--dataset", f"pairs-{name}", "--heldout", "0", "--workers", "1")
    run("ingest", str(folder / "pairs.jsonl"), "--as", "preference", *words)
    run("dataset", "render", f"{store}/pairs-{name}", "--with", name, "--to", f"{name}.rendered", "--workers", "1")
    options = ("--split", "train", "--column", "liked", "--device", "cpu", "--json")
    found = json.loads(run("score", f"{store}#{name}", "--dataset", f"{name}.rendered", *options))
    column = open_column(open_store(store), found["folders"][0])
    assert column is not None
    return np.asarray(column.take(np.arange(len(ANSWERS), dtype=np.uint64)))


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@torch.no_grad()
def their_scores(folder: Path) -> np.ndarray:
    """Scores of the same chats by transformers, from text in a padded batch, [questions, 2]."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    auto: Any = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    chats = [user(asked) + said(answer) for asked, *answers in ANSWERS for answer in answers]
    # The score of a text is read at its last trained token: without the line break behind a turn.
    texts = [tokenizer.apply_chat_template(chat, tokenize=False).rstrip("\n") for chat in chats]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 2, "the texts differ in length"
    return np.asarray(model(**batch).logits).reshape(-1, 2)


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal to 1e-5 of the scale, in the same places."""
    assert np.abs(ours).max() > 0.01
    ours, theirs = (each[np.lexsort(each.T)] for each in (ours, theirs))
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are drawn as other weights, instead of 0."""
    monkeypatch.setattr("fmscale.models.decoder.SCORE", "")


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_transformers_gives_the_scores_of_a_trained_model(tied: bool, tmp_path: Path) -> None:
    """Of a run with a language model's files, whose filler is the end of a turn, and of a run without any."""
    theirs = write_folder(tmp_path / "model", pad_token="<|im_end|>")
    store = store_texts(tmp_path / "ours", tokenizer=str(theirs))
    run("import", str(theirs), "--store", store, "--run", "base")
    meta = open_checkpoint(f"{store}#base").meta
    facts = {key: value for key, value in inherited(meta).items() if key != "types"}
    own = {"template": store_template(open_store(store), ChatTemplate(text=CHATML, special_tokens={}))}
    model, size = replace(MODEL, score=True, tied=tied), meta["vocab_size"]
    for name, said_of in (("filed", facts), ("own", own)):
        save_run(store, name, (1,), model, vocab_size=size, **said_of)
        run("checkpoint", "export", f"{store}#{name}", "--to", str(tmp_path / name))
        assert "lm_head.weight" not in tensors_of(tmp_path / name)
        same(our_scores(store, name, tmp_path), their_scores(tmp_path / name))
        run("import", str(tmp_path / name), "--store", store, "--run", f"{name}-back")
        same(our_scores(store, f"{name}-back", tmp_path), their_scores(tmp_path / name))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "filed")
    assert tokenizer.pad_token_id not in (None, library().token_to_id("<|im_end|>"))


def test_a_model_of_others_comes_back_in_the_same_tensors_and_files(tmp_path: Path) -> None:
    llama: Any = transformers.LlamaConfig
    config = llama(
        vocab_size=library().get_vocab_size(),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=1,
        pad_token_id=library().token_to_id("<|endoftext|>"),
    )
    auto: Any = transformers.AutoModelForSequenceClassification
    auto.from_config(config).save_pretrained(tmp_path / "model")
    made: Any = transformers.PreTrainedTokenizerFast
    tokenizer = made(
        tokenizer_object=library(), eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
    tokenizer.save_pretrained(tmp_path / "model")
    store = str(tmp_path / "store")
    run("import", str(tmp_path / "model"), "--store", store, "--run", "reward")
    run("checkpoint", "export", f"{store}#reward", "--to", str(tmp_path / "out"))
    there, back = tensors_of(tmp_path / "model"), tensors_of(tmp_path / "out")
    assert there.keys() == back.keys()
    assert all(torch.equal(tensor, back[name]) for name, tensor in there.items())
    for path in (tmp_path / "model").glob("*.j*"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    same(our_scores(store, "reward", tmp_path), their_scores(tmp_path / "model"))
    text = f"store: {{url: {store}}}\ntrain: {{init: {tmp_path}/model}}\nmodel: {{kind: init, score: true}}\n"
    (tmp_path / "run.yaml").write_text(text + "data: {sources: [{dataset: docs}]}\n")
    begun = with_model(load_config(tmp_path / "run.yaml"), open_store(store))
    assert find_init(begun, open_store(store), config.vocab_size, None).lacks == frozenset(), "its score is read too"
    config.num_labels = 3
    config.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"this decoder gives one score.*3 labels"):
        open_source(str(tmp_path / "model"))
