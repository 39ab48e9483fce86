"""A microbatch as the model gets it, read back for the delivery record."""

from bisect import bisect_right
from dataclasses import replace
from itertools import groupby, pairwise

import torch

from fmscale.data.batch import DocumentSpan, Microbatch
from fmscale.errors import ConfigError
from fmscale.objectives.protocol import Inputs


def received(batch: Microbatch, inputs: Inputs) -> Microbatch:
    """The microbatch as the model gets it, read back from `inputs`. A delivery record is made of it, so that any change
    by `collate` or a transfer shows in the record.

    Its tokens are the inputs and the last label; a token on which inputs and labels disagree is -1. A document begins
    where `cu_seqlens` begins a document. In the last column, which has only a label, a document begins where the label
    has no weight. A document takes its id and offset from its first token. Raises ConfigError for inputs of another
    kind.
    """
    given = inputs.tensors
    if not given.keys() >= {"tokens", "labels", "cu_seqlens"}:
        raise ConfigError(
            "train.record_delivery records rows of tokens, and the objective's inputs have none",
            found=sorted(given),
            remedy="Take train.record_delivery: false.",
        )
    inputs_BT, labels_BT = given["tokens"].cpu(), given["labels"].cpu()
    agreed_BT = torch.where(inputs_BT[:, 1:] == labels_BT[:, :-1], inputs_BT[:, 1:], -1)
    starts = torch.zeros_like(batch.tokens, dtype=torch.bool)
    cu_seqlens, T = given["cu_seqlens"][:-1].cpu().long(), inputs_BT.shape[1]
    starts[cu_seqlens // T, cu_seqlens % T] = True
    starts[:, -1] = inputs.weights[:, -1].cpu() == 0
    out = replace(batch, tokens=torch.cat((inputs_BT[:, :1], agreed_BT, labels_BT[:, -1:]), 1))
    out.spans = [
        span
        for row, spans in groupby(batch.spans, key=lambda span: span.row)
        for span in _cut(list(spans), starts[row].nonzero().flatten().tolist())
    ]
    return out


def _cut(spans: list[DocumentSpan], starts: list[int]) -> list[DocumentSpan]:
    """Cut a row's spans again, at `starts`."""
    begun, end = [span.start for span in spans], spans[-1].stop
    out = []
    for start, stop in pairwise([*starts, end]):
        span = spans[bisect_right(begun, start) - 1]
        out.append(replace(span, start=start, stop=stop, offset=span.offset + start - span.start))
    return out
