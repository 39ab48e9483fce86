"""Bits of held-out documents: their size under a lossless compressor that uses the model.

The score is all bits over all bytes, document by document. Every token of a document counts, also the EOS behind it.
Without a BOS, the first token of a document costs log2 V bits: the model knows only the vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmscale.errors import ConfigError
from fmscale.infer.threads import cpu_threads
from fmscale.models import Decoder

BATCH_TOKENS = 16384
"""Most tokens of one forward, over the windows that are read together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Document:
    """A text and its tokens."""

    name: str
    """Its origin, such as a path."""
    text: bytes
    """UTF-8 text, for the number of bytes and for other compressors."""
    tokens: np.ndarray
    """Token ids as the model is trained on them: with BOS before and EOS behind where the dataset has those."""
    bos: bool = False
    """True if the first token is BOS, which is given and costs nothing."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Cost of a document, or of several."""

    name: str
    bytes: int
    tokens: int
    """Tokens that were predicted."""
    nats: float
    """Summed cross-entropy of the predicted tokens."""

    @property
    def bits_per_byte(self) -> float:
        """All bits over all bytes; NaN without text."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def loss(self) -> float:
        """Nats a token; NaN without tokens."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of all documents."""

    documents: list[Score]
    """Score of each document, in order."""
    window: int
    """Tokens that were read at once."""
    overlap: int
    """Tokens by which the windows of a longer document overlapped."""

    @property
    def total(self) -> Score:
        """All documents together."""
        return Score(
            name="total",
            bytes=sum(score.bytes for score in self.documents),
            tokens=sum(score.tokens for score in self.documents),
            nats=math.fsum(score.nats for score in self.documents),
        )


class _Window(NamedTuple):
    """Part of document number `document` that the model reads at once."""

    document: int
    tokens: np.ndarray
    """Input tokens, then the label of the last input token."""
    scored: int
    """Number of last tokens that count: earlier tokens are context."""

    @property
    def inputs(self) -> int:
        """Tokens that the model reads."""
        return len(self.tokens) - 1


@torch.no_grad()
def evaluate(
    model: Decoder,
    documents: Iterable[Document],
    *,
    window: int | None = None,
    overlap: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda size: None,
) -> Evaluation:
    """The score of each document.

    Args:
        model: on any device, in any type; the loss is summed in fp32 a token and in fp64 over tokens.
        documents: texts with their tokens; read one batch at a time.
        window: tokens that the model reads at once; None takes its max_seq_len. A longer document is read in
            windows, and each token counts once.
        overlap: tokens that a window shares with the window before; they are context and do not count again. None
            takes half a window. A larger overlap gives every token more context and costs more time.
        batch_tokens: most tokens of one forward.
        threads: CPU threads; None takes as many as a forward keeps busy.
        progress: called with the bytes of each document that was read.

    Raises ConfigError for an impossible window or overlap, or for tokens beyond the vocabulary.
    """
    limit = model.config.max_seq_len
    window = limit if window is None else window
    overlap = window // 2 if overlap is None else overlap
    if not 1 <= window <= limit:
        raise ConfigError(
            "The model cannot read a window of this size", found=window, remedy=f"Take 1 to {limit} tokens."
        )
    if not 0 <= overlap < window:
        raise ConfigError(
            "Windows must overlap by less than their size", found=overlap, remedy=f"Take 0 to {window - 1} tokens."
        )
    scores: list[Score] = []
    nats: list[float] = []
    training = model.training
    model.eval()
    try:
        batch: list[_Window] = []
        for number, document in enumerate(documents):
            _check(document, model.vocab_size)
            predicted = max(len(document.tokens) - int(document.bos), 0)
            scores.append(Score(name=document.name, bytes=len(document.text), tokens=predicted, nats=0.0))
            nats.append(math.log(model.vocab_size) if predicted and not document.bos else 0.0)
            for part in _windows(number, document.tokens, window, overlap):
                if batch and sum(other.inputs for other in batch) + part.inputs > batch_tokens:
                    _score(model, batch, nats, threads)
                    batch = []
                batch.append(part)
            progress(len(document.text))
        if batch:
            _score(model, batch, nats, threads)
    finally:
        model.train(training)
    scored = [replace(score, nats=cost) for score, cost in zip(scores, nats, strict=True)]
    return Evaluation(documents=scored, window=window, overlap=overlap)


def _windows(number: int, tokens: np.ndarray, window: int, overlap: int) -> Iterator[_Window]:
    """Windows over a document: together they score every token but the first exactly once."""
    inputs, scored, start = len(tokens) - 1, 0, 0
    while scored < inputs:
        stop = min(start + window, inputs)
        yield _Window(number, tokens[start : stop + 1], stop - scored)
        scored, start = stop, stop - overlap


def _score(model: Decoder, batch: Sequence[_Window], nats: list[float], threads: int | None) -> None:
    """Add the cost of each window's tokens to its document in `nats`."""
    device = model.output.weight.device
    lengths = torch.tensor([part.inputs for part in batch])
    cu_seqlens = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0))).to(torch.int32)
    inputs = _joined([part.tokens[:-1] for part in batch], device)
    labels = _joined([part.tokens[1:] for part in batch], device)
    with cpu_threads(model, int(lengths.sum()), threads):
        hidden = model(inputs, cu_seqlens=cu_seqlens.to(device))
        _, _, losses = model.head(hidden, labels=labels)
    for part, costs in zip(batch, losses[0].double().cpu().split(lengths.tolist()), strict=True):
        nats[part.document] += float(costs[len(costs) - part.scored :].sum())


def _joined(parts: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))[None].to(device)


def _check(document: Document, vocab_size: int) -> None:
    if len(document.tokens) and int(document.tokens.max()) >= vocab_size:
        raise ConfigError(
            f"{document.name} has token ids that the model does not have",
            found=f"{int(document.tokens.max())}, the vocabulary has {vocab_size}",
            remedy="Encode it with the tokenizer that the model was trained with.",
        )
