"""Documents that training never saw: their size in bits, and the model's continuations of them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fmscale.infer import Document, Sampling, evaluate, generate
from fmscale.infer.compressors import PRIMED_BYTES, gzip_bytes, primed_zstd, xz_bytes
from fmscale.infer.heldout import stored_documents
from fmscale.infer.load import TrainedModel

SPLIT = "heldout"
PROMPTS = 3
PROMPT_CHARACTERS = 240
NEW_TOKENS = 80
BATCH_TOKENS = 4096
"""Tokens of a forward: few enough for a bar that moves and for a CPU's caches."""
SAMPLING = Sampling(temperature=0.5, top_p=0.9, seed=1)


@dataclass(frozen=True, kw_only=True)
class Bits:
    """A document's size in bits, by the model and by three compressors."""

    name: str
    bytes: int
    """Bytes of its text in UTF-8."""
    model: float
    """Sum of -log2 p over its tokens, the first and the closing token included."""
    gzip: int
    """The document alone, by gzip -9."""
    xz: int
    """The document alone, by xz -9."""
    primed: int
    """The document by zstd -19 with the training text as its dictionary: zstd has read the model's text."""


def heldout(trained: TrainedModel) -> list[Document]:
    """The held-out documents of the model's dataset that have a text, by name."""
    return sorted((one for one in _documents(trained, SPLIT) if one.text), key=lambda one: one.name)


def training_text(trained: TrainedModel) -> bytes:
    """Text that the model was trained on, up to PRIMED_BYTES, the size of zstd's dictionary."""
    text = bytearray()
    for document in _documents(trained, "train"):
        text += document.text
        if len(text) >= PRIMED_BYTES:
            break
    return bytes(text[:PRIMED_BYTES])


def _documents(trained: TrainedModel, split: str) -> Iterator[Document]:
    return stored_documents(
        trained.backend, trained.dataset, split, trained.tokenizer, bos=trained.bos, eos=trained.eos
    )


def measure(
    trained: TrainedModel, documents: Sequence[Document], seen: bytes, *, window: int, progress: Callable[[int], None]
) -> list[Bits]:
    """Bits of each document. `seen`: the training text. `window`: tokens that the model reads at once, as in training;
    a quarter of them is context.
    """
    primed = primed_zstd(seen)
    scores = evaluate(
        trained.model, documents, window=window, overlap=window // 4, batch_tokens=BATCH_TOKENS, progress=progress
    ).documents
    return [
        Bits(
            name=document.name,
            bytes=score.bytes,
            model=score.nats / math.log(2),
            gzip=8 * gzip_bytes(document.text),
            xz=8 * xz_bytes(document.text),
            primed=8 * primed(document.text),
        )
        for document, score in zip(documents, scores, strict=True)
    ]


def complete(trained: TrainedModel, documents: Sequence[Document]) -> list[dict[str, str]]:
    """Completions of three prompts: name of the document, prompt and text, as in report.json."""
    chosen = list(prompts(documents, trained.model.config.max_seq_len - NEW_TOKENS, trained.encode))
    completions = generate(
        trained.model,
        [trained.encode(prompt) for _, prompt in chosen],
        max_tokens=NEW_TOKENS,
        sampling=SAMPLING,
        eos=trained.eos,
    )
    return [
        {"name": name, "prompt": prompt, "text": trained.tokenizer.decode(completion.tokens)}
        for (name, prompt), completion in zip(chosen, completions, strict=True)
    ]


def prompts(
    documents: Sequence[Document], room: int, encode: Callable[[str], Sequence[int]]
) -> Iterator[tuple[str, str]]:
    """(name, prompt) of documents spread over the list: lines from each document's middle, at most `room` tokens."""
    chosen = [one for one in documents if len(one.text) > 2 * PROMPT_CHARACTERS] or list(documents)
    count = min(PROMPTS, len(chosen))
    for i in range(count):
        document = chosen[(2 * i + 1) * len(chosen) // (2 * count)]
        text = document.text.decode()
        middle = text.find("\n", len(text) // 2) + 1
        begin = text.rfind("\n\n", 0, middle) + 1
        prompt = text[begin : begin + PROMPT_CHARACTERS].lstrip("\n")
        # Whole lines, if the prompt has any: the completion then begins at the start of a line.
        head, line_end, _ = prompt.rpartition("\n")
        prompt = (head + line_end) or prompt or text[:PROMPT_CHARACTERS]
        while len(encode(prompt)) > room:
            prompt = prompt[: len(prompt) // 2]
        yield document.name, prompt
