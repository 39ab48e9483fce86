"""Log-probs of documents, summed over their trained tokens: the head runs at these tokens alone, a chunk at a time.

Shapes: N positions of a flat forward, S samples, D documents, M trained tokens, V vocabulary, E width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fmscale.errors import DataError
from fmscale.objectives.protocol import Inputs, SampleBatch


def grouped(batch: SampleBatch, least: int, most: int | None, objective: str) -> tuple[Inputs, Tensor]:
    """The inputs of samples of several documents, and the number of documents of each sample, int64 [S].

    The tensors are `tokens`, `positions` and `cu_seqlens`; `trained` [M], positions whose label is trained; `targets`
    [M], these labels; `spans` [D + 1], bounds of the documents in them; `last` [D], the last label of each document;
    `present`, samples with content. A sample weighs 1, a sample without content 0. Raises DataError for a sample with
    fewer documents than `least` or more than `most`.
    """
    ends, bounds = batch.cu_seqlens.long(), batch.bounds.long()
    documents = int((ends[:-1] < bounds[-1]).sum())
    of_sample = torch.searchsorted(bounds, ends[:documents], right=True) - 1
    counts = torch.bincount(of_sample, minlength=len(bounds) - 1)
    wrong = counts[(counts > 0) & ((counts < least) | (counts > (most or least + len(ends))))]
    if len(wrong):
        needed = "a pair" if most == 2 else "a ranking of two answers or more"
        raise DataError(
            f"the objective {objective} needs {needed} in each sample",
            found=f"a sample of {int(wrong[0])} documents",
            remedy="Take a dataset that `fmscale ingest --as preference` (pairs) or `--as ranking` (rankings for "
            "objective.kind: reward) began, rendered by `fmscale dataset render`.",
        )
    trained = batch.weights.flatten().nonzero().flatten()
    tensors = {
        "tokens": batch.parts["tokens"],
        "positions": batch.positions,
        "cu_seqlens": batch.cu_seqlens,
        "trained": trained,
        "targets": batch.parts["labels"].flatten()[trained],
        "spans": torch.searchsorted(trained, ends[: documents + 1]),
        "last": batch.parts["labels"].flatten()[ends[1 : documents + 1] - 1],
        "present": counts.nonzero().flatten(),
    }
    weights = (counts > 0).to(torch.float32)
    return Inputs(tensors=tensors, weights=weights, source=batch.source, bounds=batch.bounds), counts


def hidden_at(model: nn.Module, given: Any, at: Tensor) -> Tensor:
    """Hidden states (len(at), E) of a flat forward at positions `at`."""
    hidden: Tensor = model(given["tokens"], positions_BT=given["positions"], cu_seqlens=given["cu_seqlens"])
    return hidden.flatten(0, 1).index_select(0, at)


@torch.no_grad()
def document_logps(head: Any, hidden_ME: Tensor, given: Any) -> Tensor:
    """Summed log-probs of each document's trained tokens, fp32 [D], without a graph: from the full vocabulary's
    softmax.
    """
    _, _, losses_M = head(hidden_ME, labels=given["targets"])
    return -torch.segment_reduce(losses_M.float(), "sum", offsets=given["spans"], initial=0, unsafe=True)


def weighted_logps(head: Any, hidden_ME: Tensor, given: Any, factors_D: Tensor) -> Tensor:
    """The sum over documents of factor times log-prob, differentiable in hidden states and head. For the gradient of
    any loss of log-probs the factors are its derivatives; no logits outlive a chunk, and autograd keeps none.
    """
    factors_M = factors_D.repeat_interleave(given["spans"].diff(), output_size=len(given["targets"]))
    total: Tensor = head(hidden_ME, labels=given["targets"], token_weights=-factors_M)[0]
    return total
