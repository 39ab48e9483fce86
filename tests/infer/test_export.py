"""`checkpoint export --format hf`: transformers reads, frames and continues texts as `generate` does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Library
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.data.tokenizers.bpe import train_bpe
from fmscale.infer import generate
from fmscale.infer.load import TrainedModel, open_trained
from tests.infer.trained_run import TEXTS, save_run, store_texts

PROMPTS = ["The", "a  b\n", "<|endoftext|> é", "<|im_end|>"]


def published(folder: Path, processor: Any) -> Path:
    """A tokenizer as models publish it, with two ends of a text; tokenizer_config.json names the second."""
    library = Library.from_buffer(train_bpe(TEXTS.values(), 300).to_json())
    library.add_special_tokens([AddedToken(name, special=True) for name in ("<|endoftext|>", "<|im_end|>", "<s>")])
    library.post_processor = processor(library)
    folder.mkdir()
    library.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder / "tokenizer.json"


def template(library: Library) -> Any:
    """The post-processor of Llama 3, which begins and ends each text with other tokens than the data."""
    ends = [("<|bos|>", library.token_to_id("<|bos|>")), ("<|eos|>", library.token_to_id("<|eos|>"))]
    around = processors.TemplateProcessing(single="<|bos|> $A <|eos|>", special_tokens=ends)
    return processors.Sequence([processors.ByteLevel(trim_offsets=False), around])


def plain(library: Library) -> Any:
    return processors.ByteLevel(trim_offsets=False)


@pytest.fixture(params=["bos", "eos", "neither"])
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[TrainedModel, Path]:
    """A run, and its export to Hugging Face."""
    path = published(tmp_path / "tokenizer", template if request.param == "bos" else plain)
    asked = {"bos": request.param == "bos", "eos": request.param != "neither"}
    url = store_texts(tmp_path, tokenizer=str(path), **asked)
    save_run(url, "run", (1,), vocab_size=320)
    out = str(tmp_path / "out")
    result = CliRunner().invoke(build_app(), ["checkpoint", "export", f"{url}#run", "--to", out, "--format", "hf"])
    assert result.exit_code == 0, result.output
    return open_trained(f"{url}#run"), Path(out)


def test_transformers_gives_the_ids_and_the_texts_of_generate(exported: tuple[TrainedModel, Path]) -> None:
    trained, out = exported
    auto: Any = transformers.AutoModelForCausalLM
    model, tokenizer = auto.from_pretrained(out), transformers.AutoTokenizer.from_pretrained(out)
    ids = [trained.encode(prompt) for prompt in PROMPTS]
    assert [tokenizer(prompt)["input_ids"] for prompt in PROMPTS] == ids
    assert [tokenizer.decode(one[trained.bos is not None :]) for one in ids] == PROMPTS
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (trained.bos, trained.eos)
    assert tokenizer.pad_token == "<|pad|>"
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id) == (trained.bos, trained.eos)
    ours = generate(trained.model, ids, max_tokens=8, eos=trained.eos)
    for given, completion in zip(ids, ours, strict=True):
        (theirs,) = model.generate(torch.tensor([given]), max_new_tokens=8, do_sample=False).tolist()
        assert theirs[len(given) :] == completion.tokens
        assert tokenizer.decode(theirs[len(given) :]) == trained.tokenizer.decode(completion.tokens)


def test_generation_ends_at_the_eos_of_the_data(exported: tuple[TrainedModel, Path]) -> None:
    trained, out = exported
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(out)
    if trained.eos is None:
        assert json.loads((out / "config.json").read_text())["eos_token_id"] is None
        return
    given = trained.encode("a")
    with torch.no_grad():  # every continuation is now the end
        model.lm_head.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
        model.lm_head.bias[trained.eos] = 1.0
    (theirs,) = model.generate(torch.tensor([given]), max_new_tokens=8, do_sample=False).tolist()
    assert theirs == [*given, trained.eos]
    assert trained.tokenizer.decode([trained.eos]) == "<|im_end|>"
