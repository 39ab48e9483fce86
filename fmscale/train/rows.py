"""A loader's batch as the model gets it: inputs, labels and weights on the device."""

import torch

from fmscale.data.batch import Batch
from fmscale.objectives.rows import Rows


def to_rows(batch: Batch, device: str) -> Rows:
    """Rows of T + 1 delivered tokens as T inputs and the T labels that follow them.

    The last token of a row is only a label; a label at a document's beginning has weight 0, as nothing before it
    may predict it. `cu_seqlens` are the documents of the inputs: a document of which only the last token's
    label is left is not among them.
    """
    tokens_BT = batch.tokens[:, :-1]
    positions_BT = batch.positions[:, :-1]
    starts = torch.nonzero(positions_BT.reshape(-1) == 0).flatten()
    end = torch.tensor([positions_BT.numel()])
    source_B = torch.full((tokens_BT.shape[0],), -1, dtype=torch.int64)
    source_B[: batch.rows] = torch.from_numpy(batch.source.astype("int64"))
    host = (
        tokens_BT,
        batch.tokens[:, 1:],
        batch.loss_weights[:, 1:],
        positions_BT,
        torch.cat((starts, end)).to(torch.int32),
        source_B,
    )
    tokens, labels, weights, positions, cu_seqlens, source = (
        part.to(device, non_blocking=True).contiguous() for part in host
    )
    return Rows(
        tokens_BT=tokens,
        labels_BT=labels,
        weights_BT=weights,
        positions_BT=positions,
        cu_seqlens=cu_seqlens,
        source_B=source,
    )
