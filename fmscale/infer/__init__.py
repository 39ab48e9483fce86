"""Use of a trained model: generation and evaluation.

- `load.py`         a checkpoint as a model with its tokenizer
- `sampling.py`     the choice of the next token
- `plain_blocks.py` the plain block of a decoder in few calls
- `products.py`     matrix products whose rows do not depend on each other
- `slots.py`        rows of a cache, refilled as sequences end
- `generate.py`     continuations of prompts
- `threads.py`      CPU threads by the work of a forward
- `stream.py`       text from tokens, whole characters at a time
- `heldout.py`      documents of a split, or files, as tokens
- `evaluate.py`     bits per byte, loss and perplexity of documents
- `compressors.py`  gzip, xz and primed zstd on the same documents
"""

from fmscale.infer.evaluate import Document, Evaluation, evaluate
from fmscale.infer.generate import Completion, generate
from fmscale.infer.products import packed
from fmscale.infer.sampling import Sampling
from fmscale.infer.stream import TextStream

__all__ = ["Completion", "Document", "Evaluation", "Sampling", "TextStream", "evaluate", "generate", "packed"]
