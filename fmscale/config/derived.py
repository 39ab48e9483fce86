"""Numbers that follow from a config: the batch on a number of ranks, the model's size and its FLOPs."""

from dataclasses import dataclass

from fmscale.config.batch import BatchConfig
from fmscale.config.model import ModelConfig
from fmscale.errors import ConfigError

EQUATION = "global_batch = micro_batch x accumulation x dp_size"


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The three numbers of a batch, solved."""

    global_batch: int
    """Rows of one optimizer step, over all ranks."""
    micro_batch: int
    """Rows of one forward on one rank."""
    accumulation: int
    """Forwards of one rank in one optimizer step, the same on every rank."""
    dp_size: int
    """Data-parallel ranks."""
    forward_tokens: int | None = None
    """Most tokens of a flat forward. A flat forward takes samples by their lengths: `global_batch` counts samples, and
    `micro_batch` and `accumulation` are 1."""

    @property
    def padding(self) -> int:
        """Rows of weight zero in a step, over all ranks."""
        return 0 if self.forward_tokens else self.micro_batch * self.accumulation * self.dp_size - self.global_batch


def derive_batch(config: BatchConfig, dp_size: int, *, place: str = "batch") -> BatchShape:
    """Solve global_batch = micro_batch x accumulation x dp_size for the number that is not given.

    With `uneven: fill` the result is rounded up to whole rows and forwards. Raises ConfigError with the equation and
    the nearest values that solve it; `place` is the place of the config's batch section.
    """
    total, micro, steps = config.global_batch, config.micro_batch, config.accumulation
    if config.forward_tokens is not None:
        assert total is not None, "the section refuses forward_tokens without it"
        return BatchShape(
            global_batch=total, micro_batch=1, accumulation=1, dp_size=dp_size, forward_tokens=config.forward_tokens
        )
    numbers = {"global_batch": total, "micro_batch": micro, "accumulation": steps}
    given = {name: value for name, value in numbers.items() if value is not None}
    if len(given) < 2:
        raise ConfigError(
            f"{place}: two of global_batch, micro_batch and accumulation are needed ({EQUATION})",
            found=given,
            remedy="Give another number.",
        )
    fill = config.uneven == "fill"
    known = micro or steps
    assert known
    part = known * dp_size
    if micro and steps:
        capacity = part * steps
        total = total or capacity
        if total != capacity and not (fill and capacity - part < total < capacity):
            raise ConfigError(
                f"{place}: the batch does not come out: {EQUATION}, "
                f"but {total} is not {micro} x {steps} x {dp_size} = {capacity}",
                found=given,
                remedy=f"Remove one of the three, or take global_batch: {capacity}.",
            )
    else:
        assert total
        if total % part and not fill:
            raise _uneven(place, total, known, dp_size, solve="accumulation" if micro else "micro_batch")
        other = -(-total // part)
        micro, steps = micro or other, steps or other
    return BatchShape(global_batch=total, micro_batch=micro, accumulation=steps, dp_size=dp_size)


def _uneven(place: str, total: int, known: int, dp_size: int, *, solve: str) -> ConfigError:
    """The error for a batch without a whole solution, with the equation and the nearest numbers that solve it."""
    if solve == "accumulation":
        given, equation = "micro_batch", f"{total} = {known} x accumulation x {dp_size}"
    else:
        given, equation = "accumulation", f"{total} = micro_batch x {known} x {dp_size}"
    part = known * dp_size
    ways = [f"global_batch: {value}" for value in (total // part * part, -(-total // part) * part) if value]
    if total % dp_size == 0:
        share = total // dp_size
        divisors = [divisor for divisor in range(1, share + 1) if share % divisor == 0]
        below = max((divisor for divisor in divisors if divisor < known), default=None)
        above = min((divisor for divisor in divisors if divisor > known), default=None)
        ways += [f"{given}: {value}" for value in (below, above) if value]
    return ConfigError(
        f"{place}: the batch does not come out: {EQUATION}, here {equation}, so {solve} would be {total / part:.4g}",
        found={"global_batch": total, given: known, "dp_size": dp_size},
        remedy=f"Take {' or '.join(ways)}, or uneven: fill.",
    )


def num_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Number of trained parameters: blocks with biases, embedding, output (none if tied), score and norms."""
    embeddings = vocab_size * model.dim * (1 if model.tied else 2) + model.dim * model.score
    vectors = (4 if model.post_norms else 2) * model.dim
    vectors += 2 * model.head_width if model.qk_norm else 0
    vectors += model.head_width * (model.num_heads + 2 * model.kv_heads) if model.qkv_bias else 0
    return model.num_layers * (_block_matrices(model) + vectors) + embeddings + model.dim


def flops_per_token(model: ModelConfig, vocab_size: int, sequence_length: int, adapter: int = 0) -> float:
    """FLOPs that training needs for one token of a row of `sequence_length`: 3 times the forward's FLOPs. `adapter` is
    the number of an adapter's parameters: the frozen matrices then need no gradients, and count 2 times.

    The forward takes 2 FLOPs for each weight of the blocks' matrices and of the output projection, tied or not (a
    lookup in the embedding takes none), and 4 heads head_dim for each key that a query sees. With the causal mask a
    query sees (T + 1) / 2 keys on average, in layers with a window fewer. Recompute, norms, softmax and document
    masks are not counted. As in Chowdhery et al., PaLM, appendix B (arXiv 2204.02311), but without the keys behind the
    mask.
    """
    matrices = model.num_layers * _block_matrices(model) + vocab_size * model.dim
    keys = sum(_mean_keys(model.layer_window(n), sequence_length) for n in range(model.num_layers))
    attention = 4 * model.num_heads * model.head_width * keys
    trained = adapter or matrices
    return 3.0 * (2 * trained + attention) + (4.0 * matrices if adapter else 0.0)


def _block_matrices(model: ModelConfig) -> int:
    attention = 2 * model.dim * model.head_width * (model.num_heads + model.kv_heads)
    return attention + 3 * model.dim * model.ffn_width


def _mean_keys(window: int | None, sequence_length: int) -> float:
    """Keys that a query sees, on average over a row that is one document."""
    T, W = sequence_length, min(window or sequence_length, sequence_length)
    return (W * (W + 1) / 2 + (T - W) * W) / T
