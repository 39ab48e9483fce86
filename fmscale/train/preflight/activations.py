"""Activations of a decoder: the tensors that its forward keeps for backward, as our kernels save them on a GPU."""

from fmscale.config import BatchShape, Config
from fmscale.config.model import ModelConfig
from fmscale.config.train import TrainConfig
from fmscale.kernels.linear_cross_entropy import CHUNK_BYTES, DIRECT_CHUNKS

FP32 = 4


def activations_of(config: Config, vocab_size: int | None, batch: BatchShape | None) -> int | None:
    """Bytes of a rank's forward; None unless the model is a decoder and all sizes are known."""
    if type(config.model) is not ModelConfig or not vocab_size or not batch:
        return None
    tokens = batch.forward_tokens or batch.micro_batch * config.data.sequence_length
    return activation_bytes(config.model, vocab_size, tokens, config.train)


def activation_bytes(model: ModelConfig, vocab_size: int, tokens: int, train: TrainConfig) -> int:
    """Bytes that a forward of `tokens` tokens holds when they are most.

    A block keeps 4 D + 2 H E + 2 K E + 3 F numbers a token in the type of forward: the inputs of both norms, of the
    projections and of the feed-forward; queries, keys, values and output of attention; gate, up and their product
    (compare Korthikanti et al. 2022, arXiv 2205.05198, section 4.1, without dropout and with fused attention). In fp32
    it keeps a number for each norm and each head. With `recompute: full` a block keeps its input alone, and all of this
    while its own backward runs. The head keeps the gradients of its input and weight, which its forward makes.
    A compiled block may keep less.
    """
    width = 2 if train.precision == "bf16" else FP32
    D, F = model.dim, model.ffn_width
    queries, keys = model.num_heads * model.head_width, model.kv_heads * model.head_width
    numbers = 4 * D + 2 * queries + 2 * keys + 3 * F
    numbers += queries + keys if model.qk_norm else 0  # before their norm
    numbers += 2 * D if model.post_norms else 0
    numbers += F if model.activation == "gelu_tanh" else 0  # the activated gate
    exact = 2 + (2 if model.post_norms else 0) + model.num_heads * (1 if width < FP32 else 3)
    block = width * numbers + FP32 * exact + (2 * D if model.dropout else 0)
    logits = tokens * vocab_size * width
    direct = logits <= DIRECT_CHUNKS * CHUNK_BYTES
    head = tokens * (2 * width * D + FP32) + vocab_size * D * (width if direct else FP32) + min(logits, CHUNK_BYTES)
    if train.recompute == "full":
        return tokens * model.num_layers * width * D + max(head, tokens * block)
    return tokens * model.num_layers * block + head
