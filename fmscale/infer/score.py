"""Values that a model gives the documents of samples: log-probs of trained tokens, or a reward model's scores."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmscale.data.forward import FlatForward, flat_forward
from fmscale.data.reading.maker import concatenated
from fmscale.data.samples.protocol import Sample
from fmscale.data.samples.rows import RowSamples
from fmscale.errors import ConfigError
from fmscale.infer.threads import cpu_threads
from fmscale.models import Decoder
from fmscale.objectives.logps import document_logps, grouped, hidden_at
from fmscale.objectives.reward import document_scores, with_last_tokens

FORWARD_TOKENS = 8192
"""Most tokens of a forward, unless a sample alone has more."""

Values = Callable[[Any, Mapping[str, Tensor]], Tensor]
"""Function from a model and the tensors of a flat forward (`objectives.logps.grouped`) to fp32 [documents]."""


def logps(model: Any, given: Mapping[str, Tensor]) -> Tensor:
    """Summed log-prob of each document's trained tokens, fp32."""
    return document_logps(model.head, hidden_at(model, given, given["trained"]), given)


def scores(model: Any, given: Mapping[str, Tensor]) -> Tensor:
    """A reward model's score of each document, fp32. Raises ConfigError for a model without a score."""
    if not hasattr(model, "score"):
        raise ConfigError(
            "the model has no score", found="model.score: false", remedy="Name a run of objective.kind: reward."
        )
    return document_scores(model, with_last_tokens(given))


@torch.no_grad()
def document_values(
    model: Decoder, samples: Sequence[Sample], values: Values, *, threads: int | None = None
) -> list[np.ndarray]:
    """The values of each sample's documents, fp32 [documents]; empty for a sample without content.

    Samples are read packed in their order, so the result depends on nothing else. Raises ConfigError for tokens beyond
    the vocabulary.
    """
    out: list[np.ndarray] = []
    for part in _forwards(samples):
        forward = packed_samples(part)
        largest = int(forward.parts["tokens"].max())
        if largest >= model.vocab_size:
            raise ConfigError(
                "a text has token ids that the model does not have",
                found=f"{largest}, the vocabulary has {model.vocab_size}",
                remedy="Render the dataset with the model's tokenizer: `fmscale dataset render --with RUN`.",
            )
        inputs, counts = grouped(forward, 1, None, "score")
        with cpu_threads(model, int(forward.bounds[-1]), threads):
            found = values(model, inputs.to(str(model.output.weight.device)).tensors).cpu()
        out += [each.numpy() for each in found.split(counts.tolist())]
    return out


def packed_samples(samples: Sequence[Sample]) -> FlatForward:
    """Samples of rendered texts as a flat forward."""
    k, source = np.arange(len(samples), dtype=np.uint64), np.zeros(len(samples), dtype=np.uint16)
    made = concatenated(RowSamples.parts, samples)
    return flat_forward(*made, k=k, sample_source=source, row=k, step=0, last_of_step=True, pieces=[])


def _forwards(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    first, size = 0, 0
    for number, sample in enumerate(samples):
        if size and size + sample.length > FORWARD_TOKENS:
            yield samples[first:number]
            first, size = number, 0
        size += sample.length
    if len(samples) > first:
        yield samples[first:]
