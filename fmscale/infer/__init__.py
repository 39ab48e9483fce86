"""Use of a trained model: generation, conversations, prompting and evaluation.

- `load.py`         a checkpoint as a model with its tokenizer
- `adapters.py`     adapters as PEFT's files, and merged into their base
- `sampling.py`     the choice of the next token
- `plain_blocks.py` the plain block of a decoder in few calls
- `products.py`     matrix products whose rows do not depend on each other
- `slots.py`        rows of a cache, refilled as sequences end
- `generate.py`     continuations of prompts
- `threads.py`      CPU threads by the work of a forward
- `stream.py`       text from tokens, whole characters at a time
- `heldout.py`      documents of a split, or files, as tokens
- `evaluate.py`     bits per byte, loss and perplexity of documents
- `score.py`        values of documents: log-probs of trained tokens, scores of a reward model
- `value_columns.py`  derived columns of these values
- `rankings.py`     a reward model on held-out pairs and rankings
- `compressors.py`  gzip, xz and primed zstd on the same documents
- `likelihoods.py`  log-likelihoods of continuations, contexts shared
- `prompt/`         prompts as data: templates, examples, answers, votes
- `tasks/`          evaluation by tasks
- `answer.py`       answers to conversations, by the run's chat template
- `server/`         a server with OpenAI's chat completions
"""

from fmscale.infer.evaluate import Document, Evaluation, evaluate
from fmscale.infer.generate import Completion, generate
from fmscale.infer.products import packed
from fmscale.infer.sampling import Sampling
from fmscale.infer.stream import TextStream

__all__ = ["Completion", "Document", "Evaluation", "Sampling", "TextStream", "evaluate", "generate", "packed"]
