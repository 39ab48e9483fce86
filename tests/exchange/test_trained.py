"""A run that begins with an imported model, and its fork, go back to Hugging Face: transformers says what we say."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fmscale.checkpoint.checkpoint import open_checkpoint
from fmscale.checkpoint.read.meta import INHERITED, inherited
from fmscale.infer import Sampling, generate
from fmscale.infer.load import open_trained
from tests.exchange.foreign import CHAT, CHATML, tensors_of, write_folder
from tests.exchange.test_folder import run
from tests.helpers.ranks import run_ranks
from tests.infer.trained_run import store_texts
from tests.train.runs import train_here

CONFIG = """
store: {{url: {store}}}
model: {{num_layers: 2, dim: 64, num_heads: 4, num_kv_heads: 2, head_dim: 16, hidden_dim: 192, max_seq_len: 96}}
data: {{sequence_length: 32, sources: [{{dataset: docs}}]}}
batch: {{global_batch: 4, micro_batch: 2}}
train: {{folder: {folder}, device: cpu, precision: fp32, threads: 1}}
optimizer: {{lr: 0.05}}
schedule: {{warmup_steps: 0}}
"""


@pytest.mark.slow
def test_facts_travel_through_training_and_forks_into_the_export(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    url = store_texts(tmp_path, tokenizer=str(folder))
    run("import", str(folder), "--store", url, "--run", "base")
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(store=url, folder=tmp_path / "runs"))
    [first] = run_ranks(train_here, 1, str(config), ("train.run=tuned", "train.init=base", "train.steps=2"))
    forked = ("train.run=fork", "train.resume=tuned@2", "train.steps=3")
    [second] = run_ranks(train_here, 1, str(config), forked)
    assert (first["last_step"], second["last_step"]) == (2, 3)
    facts = inherited(open_checkpoint(f"{url}#base").meta)
    assert facts.keys() == set(INHERITED)
    for name in ("tuned", "fork"):
        assert inherited(open_checkpoint(f"{url}#{name}").meta) == facts

    run("checkpoint", "export", f"{url}#fork", "--to", str(tmp_path / "out"))
    ours, theirs = tensors_of(tmp_path / "out"), tensors_of(folder)
    assert {name: tensor.dtype for name, tensor in ours.items()} == {name: t.dtype for name, t in theirs.items()}
    assert not torch.equal(ours["lm_head.weight"], theirs["lm_head.weight"])
    run("checkpoint", "export", f"{url}#fork", "--to", str(tmp_path / "wide"), "--dtype", "float32")
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path / "wide").eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "wide")
    trained = open_trained(f"{url}#fork")
    assert trained.template is not None
    assert trained.template.text == CHATML
    text = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text)["input_ids"]
    logits = trained.model.head(trained.model(torch.tensor([ids])))
    torch.testing.assert_close(logits, model(torch.tensor([ids])).logits, atol=1e-4, rtol=1e-4)
    (answer,) = generate(trained.model, [ids], max_tokens=12, sampling=Sampling(temperature=0.0), eos=trained.eos)
    (whole,) = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False).tolist()
    assert whole[len(ids) :] == list(answer.tokens)
    assert tokenizer.decode(whole[len(ids) :]) == trained.tokenizer.decode(answer.tokens)
