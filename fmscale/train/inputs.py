"""A forward as the model gets it, read back for the delivery record."""

from bisect import bisect_right
from dataclasses import replace
from itertools import groupby, pairwise

import torch
from torch import Tensor

from fmscale.data.batch import DocumentSpan, Microbatch
from fmscale.data.forward import FlatForward
from fmscale.data.provenance.delivery import DeliveryRecord
from fmscale.errors import ConfigError
from fmscale.objectives.protocol import Inputs


def deliver(record: DeliveryRecord, batch: Microbatch | FlatForward, inputs: Inputs) -> None:
    """Record a forward of either kind as the model gets it."""
    record.add(received_samples(batch, inputs) if isinstance(batch, FlatForward) else received(batch, inputs))


def received_samples(forward: FlatForward, inputs: Inputs) -> FlatForward:
    """The flat forward as the model gets it. A part, the positions and the weights are taken from `inputs` where the
    objective passed them on: under the same name, with shape and type kept. A part that an objective makes anew, such
    as a normalised picture, is recorded as it was delivered.

    A position is -1 if the objective passed on positions that disagree with its `cu_seqlens`.
    """
    tensors = {**inputs.tensors, "weights": inputs.weights}

    def given(name: str, delivered: Tensor) -> Tensor:
        found = tensors.get(name, delivered)
        return found.cpu() if (found.shape, found.dtype) == (delivered.shape, delivered.dtype) else delivered

    positions = given("positions", forward.positions)
    if tensors.keys() >= {"positions", "cu_seqlens"} and int(tensors["cu_seqlens"][-1]) == positions.numel():
        ends = tensors["cu_seqlens"].cpu().long()
        begins = torch.repeat_interleave(ends[:-1], ends.diff())
        positions = torch.where(positions == torch.arange(len(begins)) - begins, positions, -1)
    return replace(
        forward,
        parts={name: given(name, part) for name, part in forward.parts.items()},
        positions=positions,
        weights=given("weights", forward.weights),
    )


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
