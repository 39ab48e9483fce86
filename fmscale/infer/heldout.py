"""Documents to evaluate on: a split of a dataset, or files."""

from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from fmscale.data.tokenizers.protocol import Tokenizer
from fmscale.data.tokenizers.tokenizer import frame, from_json
from fmscale.data.views.mask import own_masked
from fmscale.errors import ConfigError, DataError
from fmscale.infer.evaluate import Document
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.commit import Commit
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.datasets.tokenizers import load_tokenizer
from fmscale.store.segments.handle import read_document_table
from fmscale.store.segments.kinds import open_kind
from fmscale.store.segments.records import RecordSegment, read_records
from fmscale.store.segments.tokens import TokenSegment, split_tokens

READ_TOKENS, READ_RECORDS = 2**20, 256
"""Tokens or records that are read at once."""


def stored_documents(
    backend: Backend,
    dataset: str,
    split: str,
    tokenizer: Tokenizer,
    *,
    bos: int | None,
    eos: int | None,
    limit: int | None = None,
) -> Iterator[Document]:
    """The documents of a split that the dataset's masks leave, at most `limit`, commit by commit in their stored order.

    The dataset's tokenizer decodes them. If the model has another tokenizer, that tokenizer encodes the text again,
    with its `bos` and `eos`. Raises DataError for a missing dataset or split, and lists the existing names.
    """
    opened = open_dataset(backend, dataset)
    commits = [commit for commit in opened.commits() if split in commit.manifests]
    if not commits:
        splits = sorted({name for commit in opened.commits() for name in commit.manifests})
        raise DataError(
            f"Dataset {dataset} has no documents of this split",
            found=split,
            remedy=f"It has {', '.join(splits) or 'none'}; `fmscale ingest --heldout 0.01` keeps some back.",
        )
    if commits[-1].kind != "tokens":
        raise DataError(
            f"Dataset {dataset} holds records, and its texts are no documents",
            found=commits[-1].kind,
            remedy="Name a dataset of text (--dataset); held-out chats are measured while training (evaluation.sets).",
        )
    count, masked = 0, own_masked(opened, split)
    for commit in commits:
        assert commit.tokenizer is not None, "records have no token segments"
        commit_tokenizer = from_json(load_tokenizer(backend, commit.tokenizer), f"tokenizer {commit.tokenizer}")
        for named, tokens in stored(backend, commit, split, masked.get(commit.number)):
            if limit is not None and count >= limit:
                return
            count += 1
            bare = tokens[int(commit.bos is not None) : len(tokens) - int(commit.eos is not None)]
            name, text = named["source"], commit_tokenizer.decode(bare).encode()
            if commit.tokenizer == tokenizer.digest:
                yield Document(name=name, text=text, tokens=tokens, bos=commit.bos is not None)
            else:
                yield document(name, text, tokenizer, bos=bos, eos=eos)


def files(paths: Sequence[Path], tokenizer: Tokenizer, *, bos: int | None, eos: int | None) -> Iterator[Document]:
    """Files as documents. Raises ConfigError for a file that cannot be read or is not text."""
    for path in paths:
        try:
            text = path.read_bytes()
            text.decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                "A document cannot be read as UTF-8 text", found=f"{path}: {error}", remedy="Name text files."
            ) from error
        yield document(str(path), text, tokenizer, bos=bos, eos=eos)


def document(name: str, text: bytes, tokenizer: Tokenizer, *, bos: int | None, eos: int | None) -> Document:
    """A text with its tokens, between BOS and EOS where these are given."""
    ids = tokenizer.encode_batch([text.decode()])[0]
    return Document(name=name, text=text, tokens=frame(ids, bos, eos), bos=bos is not None)


def stored(
    backend: Backend, commit: Commit, split: str, masked: np.ndarray | None
) -> Iterator[tuple[dict[str, Any], Any]]:
    """(id and source, tokens or record) of each document or record of a commit's split, without those at masked
    positions.
    """
    for row in commit.manifests[split].rows():
        segment = open_kind(backend, commit.kind, row.prefix, row.seal)
        table = read_document_table(backend, segment)
        ends = np.cumsum(table["tokens"].to_numpy())
        if isinstance(segment, TokenSegment):
            place, parts = row.first_token, split_tokens(backend, segment, ends, READ_TOKENS)
        else:
            place, parts = row.first_document, _records(backend, segment)
        left = ~np.isin(place + np.append(0, ends[:-1]), () if masked is None else masked)
        for first, contents in parts:
            named = table.slice(first, len(contents)).select(["id", "source"]).to_pylist()
            yield from compress(zip(named, contents, strict=True), left[first:])


def _records(backend: Backend, segment: RecordSegment) -> Iterator[tuple[int, list[Any]]]:
    for first in range(0, segment.documents, READ_RECORDS):
        count = min(READ_RECORDS, segment.documents - first)
        yield first, read_records(backend, segment, first, count).to_pylist()
