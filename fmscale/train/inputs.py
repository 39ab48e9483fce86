"""A loader's microbatch as the model gets it: inputs, labels and weights on the device."""

from bisect import bisect_right
from dataclasses import replace
from itertools import groupby, pairwise

import torch

from fmscale.data.batch import DocumentSpan, Microbatch
from fmscale.objectives.protocol import Inputs


def to_inputs(batch: Microbatch, device: str) -> Inputs:
    """Rows of T + 1 delivered tokens as T inputs and the T labels that follow them.

    The last token of a row is only a label; a label at a document's beginning has weight 0, as no
    earlier token may predict it. `cu_seqlens` has the documents of the inputs, without a document that only has
    the row's last label.
    """
    tokens_BT = batch.tokens[:, :-1]
    positions_BT = batch.positions[:, :-1]
    starts = torch.nonzero(positions_BT.reshape(-1) == 0).flatten()
    end = torch.tensor([positions_BT.numel()])
    source_B = torch.full((tokens_BT.shape[0],), -1, dtype=torch.int64)
    source_B[: batch.rows] = torch.from_numpy(batch.source.astype("int64"))
    host = {
        "tokens_BT": tokens_BT,
        "labels_BT": batch.tokens[:, 1:],
        "weights_BT": batch.loss_weights[:, 1:],
        "positions_BT": positions_BT,
        "cu_seqlens": torch.cat((starts, end)).to(torch.int32),
        "source_B": source_B,
    }
    return Inputs(**{name: part.to(device, non_blocking=True).contiguous() for name, part in host.items()})


def received(batch: Microbatch, inputs: Inputs) -> Microbatch:
    """The microbatch as the model gets it, read back from `inputs`. A delivery record is made of it, so that any change
    by `to_inputs` or a transfer shows in the record.

    Its tokens are the inputs and the last label; a token on which inputs and labels disagree is -1. A document begins
    where `cu_seqlens` begins a document. In the last column, which has only a label, a document begins where the label
    has no weight. A document takes its id and offset from its first token.
    """
    inputs_BT, labels_BT = inputs.tokens_BT.cpu(), inputs.labels_BT.cpu()
    agreed_BT = torch.where(inputs_BT[:, 1:] == labels_BT[:, :-1], inputs_BT[:, 1:], -1)
    starts = torch.zeros_like(batch.tokens, dtype=torch.bool)
    cu_seqlens, T = inputs.cu_seqlens[:-1].cpu().long(), inputs_BT.shape[1]
    starts[cu_seqlens // T, cu_seqlens % T] = True
    starts[:, -1] = inputs.weights_BT[:, -1].cpu() == 0
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
