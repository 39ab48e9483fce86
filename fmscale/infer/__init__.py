"""Using a trained model: generation and evaluation."""

from fmscale.infer.evaluate import Document, Evaluation, evaluate
from fmscale.infer.generate import Completion, generate
from fmscale.infer.sampling import Sampling
from fmscale.infer.stream import TextStream

__all__ = ["Completion", "Document", "Evaluation", "Sampling", "TextStream", "evaluate", "generate"]
