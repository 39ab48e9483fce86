"""Every family that transformers shares with the decoder: imported, and back in the same tensors and files."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fmscale.infer.load import open_trained
from tests.exchange.foreign import CHATML, library, tensors_of
from tests.exchange.test_folder import run

STRETCHED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WINDOWS = {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_scaling": STRETCHED | {"original_max_position_embeddings": 64}},
    "mistral": {"sliding_window": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": WINDOWS,
    "gemma3_text": WINDOWS,
}


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_tensors_files_and_logits_come_back(kind: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=library().get_vocab_size(),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        **FAMILIES[kind],
    )
    auto: Any = transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    theirs = auto.from_config(config)
    for parameter in theirs.parameters():
        parameter.normal_(0.0, 0.2)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "model", max_shard_size="60kB")
    made: Any = transformers.PreTrainedTokenizerFast
    made(tokenizer_object=library(), eos_token="<|im_end|>", chat_template=CHATML).save_pretrained(tmp_path / "model")
    run("import", str(tmp_path / "model"), "--store", str(tmp_path / "store"), "--run", "base")
    run("checkpoint", "export", f"{tmp_path}/store#base", "--to", str(tmp_path / "out"))
    there, back = tensors_of(tmp_path / "model"), tensors_of(tmp_path / "out")
    assert {name: tensor.dtype for name, tensor in there.items()} == {
        name: tensor.dtype for name, tensor in back.items()
    }
    assert all(torch.equal(tensor, back[name]) for name, tensor in there.items())
    small = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.name[:5] != "model"}
    assert small == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name[:5] != "model"}
    ids = torch.randint(0, 300, (1, 60), generator=torch.Generator().manual_seed(1))
    ours = open_trained(f"{tmp_path}/store#base").model
    again = auto.from_pretrained(tmp_path / "out", dtype=torch.float32, attn_implementation="eager").eval()
    logits = again(ids).logits
    assert (ours.head(ours(ids)) - logits).abs().max() <= 1e-4 * logits.abs().max()
