"""Classification of pictures."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fmscale.objectives import Inputs, Loss, Objective, SampleBatch


@dataclass(frozen=True, kw_only=True)
class Classify(Objective):
    """Cross-entropy in nats of each picture's class; a record without a picture has weight 0."""

    unit = "images"

    smoothing: float = 0.0
    """Share of a label that is spread over all classes."""

    def collate(self, batch: SampleBatch) -> Inputs:
        """The parts of `pictures.spec:Crops`, with bounds; the weight of a picture is 1."""
        bounds = batch.bounds.long()
        return Inputs(
            tensors={**batch.parts, "cu_seqlens": batch.cu_seqlens},
            weights=(bounds.diff() > 0).float(),
            source=batch.source,
            bounds=bounds,
        )

    def __call__(self, model: nn.Module, inputs: Inputs, context: Any = None) -> Loss:
        """`model(patches, places, cu_seqlens=, bounds=)` gives logits."""
        given, weights = inputs.tensors, inputs.weights
        logits = model(given["patches"], given["places"], cu_seqlens=given["cu_seqlens"], bounds=inputs.bounds).float()
        losses = weights * cross_entropy(logits, given["label"], reduction="none", label_smoothing=self.smoothing)
        right = (logits.argmax(-1) == given["label"]).float() * weights
        return Loss(
            sum=losses.sum(),
            count=weights.sum(),
            by_sample=torch.stack((losses.detach(), weights)),
            metrics={"accuracy": right.sum()},
        )
