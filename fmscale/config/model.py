"""The section `model`: a decoder of the families Llama, Qwen and Gemma, or a class of the user's own."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fmscale.config.checks import InvalidField, above_zero, at_least


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Stretching of the rotary embedding to sequences longer than in training, as in Llama 3.1: slow pairs turn
    `factor` times slower, fast pairs turn as before, pairs between are blended (Meta, llama-models).
    """

    factor: float = 8.0
    """Factor by which the slow pairs turn slower."""
    low_freq_factor: float = 1.0
    """Pairs with fewer turns than this over `original_seq_len` are slow."""
    high_freq_factor: float = 4.0
    """Pairs with more turns than this over `original_seq_len` are fast."""
    original_seq_len: int = 8192
    """Longest sequence before the stretching; 1 makes all pairs slow, which is linear scaling, as in Gemma 3."""

    def __post_init__(self) -> None:
        at_least(self, 1.0, "factor")
        at_least(self, 1, "original_seq_len")
        ends = (self.low_freq_factor, self.high_freq_factor)
        if not 0 < ends[0] < ends[1]:
            remedy = "Llama 3.1 has low_freq_factor 1 and high_freq_factor 4."
            raise InvalidField("low_freq_factor", "must lie between 0 and high_freq_factor", found=ends, remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder: RMSNorm, rotary positions, grouped queries, a gated feed-forward. The defaults make a Llama of 162 M
    parameters at a 50k vocabulary; other fields add what Mistral, Qwen and Gemma have.
    """

    kind: ClassVar[str] = "decoder"
    num_layers: int = 12
    """Blocks of attention and feed-forward."""
    dim: int = 768
    """Width of the residual stream."""
    num_heads: int = 12
    """Query heads."""
    num_kv_heads: int | None = None
    """Key and value heads; null takes num_heads. Fewer make the cache of generation smaller."""
    head_dim: int | None = None
    """Width of a head; null takes dim / num_heads."""
    hidden_dim: int | None = None
    """Width of the feed-forward; null takes 8/3 dim, rounded up to a multiple of 64: SwiGLU's three
    matrices then have the size of the two matrices of an MLP of width 4 dim."""
    vocab_size: int | None = None
    """Rows of the embedding; null takes the tokenizer's vocabulary."""
    max_seq_len: int = 4096
    """Longest sequence that the model is meant for."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths."""
    rope_scaling: RopeScaling | None = None
    """Stretching of the rotary embedding; null does not stretch it."""
    local_rope_theta: float | None = None
    """Base of the rotary wavelengths in layers with a window, which are then not stretched, as in Gemma 3; null takes
    rope_theta and rope_scaling."""
    norm_eps: float = 1e-5
    """Number added to the mean square in RMSNorm."""
    norm_offset: float = 0.0
    """Number added to the weights of norms; Gemma stores them less 1."""
    post_norms: bool = False
    """True where attention and feed-forward have a norm behind them too, before the residual stream (Gemma)."""
    qk_norm: bool = False
    """True where each head of queries and keys has a norm before its rotation (Qwen 3, Gemma 3)."""
    qkv_bias: bool = False
    """True where queries, keys and values have biases (Qwen 2)."""
    query_scalar: int | None = None
    """Number s of attention's scores q k / sqrt(s); null takes the width of a head."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    """Function of the feed-forward's gate: SwiGLU, or GeGLU in the tanh form (Gemma)."""
    embedding_scale: float = 1.0
    """Factor of the embedding's rows; Gemma takes sqrt(dim)."""
    tied: bool = False
    """True where the output projection is the embedding."""
    score: bool = False
    """True for a reward model: a linear map from a hidden state to a score, beside the output projection."""
    dropout: float = 0.0
    """Share of the outputs of attention and feed-forward that is dropped in training, before the residual stream."""
    window: int | None = None
    """Tokens that attention sees back, the query's own included; null sees the whole document."""
    global_layers: tuple[int, ...] = ()
    """Layers that see the whole document in spite of `window`, in ascending order from 0."""
    softcap: float | None = None
    """Bound c of attention's scores: a score becomes c tanh(score / c); null sets no bound."""
    logit_softcap: float | None = None
    """Bound c of the logits, in the same form, in generation and in the loss; null sets no bound."""
    init_std: float = 0.02
    """Standard deviation of the initial weights; divided by sqrt(2 num_layers) for weights that write to the
    residual stream, as in GPT-2."""
    attention_backend: Literal["auto", "triton", "sdpa", "varlen", "eager"] = "auto"
    """auto takes the fastest known backend that supports the call; varlen is torch's for documents, on a GPU alone."""

    def __post_init__(self) -> None:
        at_least(self, 1, "num_layers", "dim", "num_heads", "num_kv_heads", "head_dim", "hidden_dim", "query_scalar")
        at_least(self, 1, "vocab_size", "max_seq_len")
        at_least(self, 1, "window", hint="null sees the whole document.")
        at_least(self, 0.0, "init_std")
        above_zero(self, "rope_theta", "local_rope_theta", "norm_eps", "embedding_scale", "softcap", "logit_softcap")
        layers = self.global_layers
        if list(layers) != sorted({n for n in layers if 0 <= n < self.num_layers}):
            remedy = f"Name layers from 0 to {self.num_layers - 1}, each once, in ascending order."
            raise InvalidField("global_layers", "must be layers of the model", found=layers, remedy=remedy)
        for name in ("global_layers", "local_rope_theta"):
            if self.window is None and getattr(self, name):
                found, remedy = getattr(self, name), "Give model.window too."
                raise InvalidField(name, "says something only where window is given", found=found, remedy=remedy)
        if not 0 <= self.dropout < 1:
            raise InvalidField("dropout", "must lie in [0, 1)", found=self.dropout, remedy="Give 0 to drop nothing.")
        if self.head_dim is None and self.dim % self.num_heads:
            found, remedy = f"{self.num_heads} heads, dim {self.dim}", "Give head_dim, or another number of heads."
            raise InvalidField("num_heads", "must divide dim where head_dim is not given", found=found, remedy=remedy)
        if self.head_width % 2:
            width, remedy = self.head_width, "Without head_dim it is dim / num_heads."
            raise InvalidField("head_dim", "must be even: rotary positions turn pairs", found=width, remedy=remedy)
        if self.num_heads % self.kv_heads:
            raise InvalidField(
                "num_kv_heads",
                "must divide num_heads",
                found=f"{self.kv_heads} of {self.num_heads}",
                remedy="Each key head serves the same number of query heads.",
            )

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_width(self) -> int:
        return self.dim // self.num_heads if self.head_dim is None else self.head_dim

    def layer_window(self, layer: int) -> int | None:
        """Window of a layer, counted from 0."""
        return None if layer in self.global_layers else self.window

    @property
    def ffn_width(self) -> int:
        return -(-8 * self.dim // (3 * 64)) * 64 if self.hidden_dim is None else self.hidden_dim


@dataclass(frozen=True, kw_only=True)
class InitModelConfig:
    """The model of `train.init`, or of the run's own checkpoint, with the changes of a fine-tuning."""

    kind: ClassVar[str] = "init"
    score: bool = False
    """True for a reward model: a linear map from a hidden state to a score, beside the output projection."""
    dropout: float = 0.0
    """Share of the outputs of attention and feed-forward that is dropped in training, before the residual stream."""
    attention_backend: Literal["auto", "triton", "sdpa", "varlen", "eager"] = "auto"
    """auto takes the fastest known backend that supports the call; varlen is torch's for documents, on a GPU alone."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise InvalidField("dropout", "must lie in [0, 1)", found=self.dropout, remedy="Give 0 to drop nothing.")
