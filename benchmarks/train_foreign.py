"""The sides of T4: transformers' Llama with torch's AdamW, and a loop and model like nanoGPT's, on the run's own rows.

Both get what the trainer gets: the same tokens in the same order, in memory, the same batch, optimizer and learning
rate, one thread. Llama begins with the run's first weights; nanoGPT's model draws its own.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmscale.config import Config, ModelConfig
from fmscale.models.hf import hf_config, hf_names
from fmscale.train.engine.protocol import Engine

Steps = Iterator[list[Tensor]]
"""The microbatches of each step: int64 [B, T + 1]."""


class Foreign:
    """A loop around a model of its own; `losses` has the mean loss of each step."""

    def __init__(self, model: nn.Module, logits: Callable[[Tensor], Tensor], config: Config, steps: Steps):
        self._model, self._steps = model.train(), steps
        self.logits = logits
        self._clip = config.optimizer.clip_norm
        decayed = [p for p in model.parameters() if p.dim() >= 2]
        others = [p for p in model.parameters() if p.dim() < 2]
        groups = [
            {"params": decayed, "weight_decay": config.optimizer.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        settings = config.optimizer
        self._optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            fused=True,
        )
        self.losses: list[float] = []

    def train(self, steps: int) -> None:
        """Take steps."""
        for _ in range(steps):
            microbatches = next(self._steps)
            total = 0.0
            for rows in microbatches:
                loss = functional.cross_entropy(self.logits(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
                (loss / len(microbatches)).backward()
                total += loss.item() / len(microbatches)
            nn.utils.clip_grad_norm_(self._model.parameters(), self._clip or float("inf"))
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self.losses.append(total)


def llama(config: Config, engine: Engine, steps: Steps) -> Foreign:
    """transformers' Llama with the engine's weights."""
    import transformers

    shape = cast(ModelConfig, config.model)
    assert shape.vocab_size
    keys = hf_config(shape, shape.vocab_size, bos=None, eos=None)
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**keys))
    names = hf_names(shape)
    theirs = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            theirs[names[name.split("model.", 1)[1]]].copy_(parameter.float())
    return Foreign(model, lambda ids: cast(Tensor, model(ids).logits), config, steps)


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        size = (*x_BTD.shape[:2], self.heads, -1)
        q, k, v = (part.view(size).transpose(1, 2) for part in self.qkv(self.norm1(x_BTD)).chunk(3, -1))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(seen.transpose(1, 2).flatten(2))
        return cast(Tensor, x_BTD + self.down(functional.gelu(self.up(self.norm2(x_BTD)))))


class _NanoGpt(nn.Module):
    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        assert shape.vocab_size
        self.tokens = nn.Embedding(shape.vocab_size, shape.dim)
        self.places = nn.Embedding(shape.max_seq_len, shape.dim)
        self.blocks = nn.ModuleList(_Block(shape.dim, shape.num_heads) for _ in range(shape.num_layers))
        self.norm = nn.LayerNorm(shape.dim)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * shape.num_layers) ** 0.5 if last else 0.02)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.tokens(ids_BT) + self.places.weight[: ids_BT.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return functional.linear(self.norm(x_BTD), self.tokens.weight)


def nanogpt(config: Config, steps: Steps) -> Foreign:
    """A model of the same width and depth as nanoGPT builds it: learned positions, LayerNorm, GELU, a tied head."""
    torch.manual_seed(config.train.seed)
    model = _NanoGpt(cast(ModelConfig, config.model))
    return Foreign(model, model, config, steps)


def mean_loss(logits: Callable[[Tensor], Tensor], rows: Sequence[Tensor]) -> float:
    """Mean loss of the next tokens of rows (B, T + 1), each read as one document."""
    with torch.no_grad():
        found = [
            functional.cross_entropy(logits(each[:, :-1]).flatten(0, 1).float(), each[:, 1:].flatten()).item()
            for each in rows
        ]
    return sum(found) / len(found)
