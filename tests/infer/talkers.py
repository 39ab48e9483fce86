"""Runs that can talk: a model whose next token follows from its last token alone, with a chat template."""

from itertools import pairwise
from pathlib import Path

import torch

from fmscale.checkpoint.format.names import run_log
from fmscale.checkpoint.format.piece import whole
from fmscale.checkpoint.saver import Saver
from fmscale.config import CheckpointConfig, ModelConfig, as_tree
from fmscale.data.tokenizers.tokenizer import ByteTokenizer
from fmscale.models import Decoder, build
from fmscale.runtime.world import World
from fmscale.store.datasets.templates import ChatTemplate, store_template
from fmscale.store.datasets.tokenizers import store_tokenizer
from fmscale.store.log.lease import acquire
from fmscale.store.open import open_store

TEMPLATE = ChatTemplate(
    text="{% for message in messages %}<|reserved_0|>{{ message.role }}\n{{ message.content }}<|eos|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|reserved_0|>assistant\n{% if messages[-1].content == 'letters' %}Z{% endif %}"
    "{% endif %}",
    special_tokens={"bos_token": "<|bos|>", "eos_token": "<|eos|>"},
)
SAYS = "hé,\x1b[mwolf →0123456789"
"""Answer to everything else: no byte comes twice."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Answer to `letters`, again and again."""


def save_talker(url: str, run: str, *, context: int = 1 << 12, template: bool = True) -> None:
    """Save a run that answers LETTERS or SAYS."""
    backend = open_store(url)
    config = ModelConfig(num_layers=1, dim=64, num_heads=2, max_seq_len=context)
    model = build(config, vocab_size=272)
    _write_chains(model, [10, *SAYS.encode(), 257], [*LETTERS.encode(), ord("A")])
    saver = Saver(
        url, run, world=World(), lease=acquire(run_log(backend, run), "test").number, config=CheckpointConfig()
    )
    meta = {
        "step": 1,
        "updates": 1,
        "vocab_size": 272,
        "tokenizer": store_tokenizer(backend, ByteTokenizer().to_json()),
        "config": {"model": as_tree(config), "data": {"sources": [{"dataset": "chats"}]}},
        **({"template": store_template(backend, TEMPLATE)} if template else {}),
    }
    saver.save(1, [whole(name, weight) for name, weight in model.named_parameters()], meta, wait=True)
    assert {report.state for report in saver.close(60.0)} == {"acknowledged"}


@torch.no_grad()
def _write_chains(model: Decoder, *chains: list[int]) -> None:
    """Weights with which the likeliest token behind chain[i] is chain[i + 1], whatever came before."""
    model.init_weights(torch.Generator().manual_seed(1))
    for name, weight in model.named_parameters():
        if name.endswith(("wo.weight", "w2.weight")):
            weight.zero_()
    rows = torch.nn.functional.normalize(torch.randn(272, 64, generator=torch.Generator().manual_seed(2)), dim=1)
    model.tok_embeddings.weight.copy_(rows)
    model.output.weight.zero_()
    for chain in chains:
        for token, following in pairwise(chain):
            model.output.weight[following] += 10 * rows[token]


def talkers(folder: Path) -> str:
    """URL of a store with the runs `talker`, `short` of 128 tokens, and `plain` without a template."""
    url = str(folder / "store")
    save_talker(url, "talker")
    save_talker(url, "short", context=128)
    save_talker(url, "plain", template=False)
    return url
