"""Arguments and outcome of an ingest job."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmscale.data.chat.formats import SHAPES
from fmscale.data.ingest.formats import FORMATS
from fmscale.errors import ConfigError

Progress = Callable[[str, int, int], object]
"""Receives the phase of the job, the raw bytes done, and the raw bytes of all inputs."""


@dataclass(frozen=True, kw_only=True)
class IngestRequest:
    """Arguments of `ingest`, which explains them."""

    paths: tuple[str, ...]
    store: str
    dataset: str
    tokenizer: str | None
    kind: str
    shape: str
    format: str
    field: str | None
    heldout: float | None
    strict: bool
    replace: bool
    dry_run: bool
    bos: bool | None
    eos: bool | None
    scratch: Path | None
    unit_bytes: int | None
    max_document: int

    def check(self) -> None:
        """Raise ConfigError for an unusable value."""
        if self.kind not in FORMATS:
            remedy = f"Use {', '.join((*FORMATS, *SHAPES))}."
            raise ConfigError("Files are ingested as text or as records", found=self.kind, remedy=remedy)
        formats = ("auto", *FORMATS[self.kind])
        if self.format not in formats:
            remedy = f"Use {', '.join(formats)}."
            raise ConfigError(f"There is no such input format of {self.kind}", found=self.format, remedy=remedy)
        given = {"tokenizer": self.tokenizer, "field": self.field, "bos": self.bos, "eos": self.eos}
        found = [f"{name}={value}" for name, value in given.items() if value is not None]
        if self.kind == "records" and found:
            cause, remedy = "Records keep all their columns and are not tokenized", "Leave these out, or use --as text."
            raise ConfigError(cause, found=", ".join(found), remedy=remedy)
        if self.heldout is not None and not 0.0 <= self.heldout < 1.0:
            raise ConfigError(
                "The held-out share of the documents is at least 0 and below 1",
                found=self.heldout,
                remedy="0.01 holds out one in a hundred.",
            )
        if self.field is not None and not all(self.field.split(".")):
            raise ConfigError(
                "The field is a path of names joined by dots", found=self.field, remedy="For instance a.text."
            )
        if self.max_document < 1:
            raise ConfigError("A document has at least one byte", found=self.max_document, remedy="Leave it out.")
        if self.unit_bytes is not None and self.unit_bytes < 1:
            raise ConfigError(
                "A work unit has at least one byte",
                found=self.unit_bytes,
                remedy="Leave it out: it follows the size of the corpus.",
            )


@dataclass(frozen=True, kw_only=True)
class IngestResult:
    """Outcome of a job."""

    dataset: str
    """Name of the dataset."""
    commit: int | None
    """Number of the job's commit in it, or of its last commit if nothing was new; None for a dataset without any."""
    job: str
    """Digest of the job."""
    new: bool
    """False if the dataset had all of these inputs already, or of a dry run: nothing was done."""
    files: dict[str, Any]
    """Files by fate, with the first names (a dry run has all): `added`, `known`, `grown` at their end, `replaced`, and
    `changed`: refused, because their content is not the dataset's.
    """
    documents: int
    """Documents, or records, of the commit."""
    tokens: int
    """Tokens of the commit, BOS and EOS included; 0 for records."""
    splits: dict[str, dict[str, int]]
    """Segments, tokens, documents and bytes of each split."""
    raw_bytes: int
    """Bytes of the input files."""
    text_bytes: int
    """UTF-8 bytes of the documents; 0 for records."""
    skipped: dict[str, Any]
    """Input that was passed over: by reason, the count and the first names."""
    guessed: dict[str, Any]
    """Files whose first bytes decided the format: by format, the count and the first names. An entry `text` is a
    guess.
    """
    tokenizer: str | None
    """Digest of the tokenizer; None for records."""
    units: int
    """Work units of the job."""
    resumed: int
    """Units that an earlier run had finished."""
    writers: int = 1
    """Processes that did the other units."""
    seconds: float = 0.0
    """Seconds of this run."""

    @property
    def kind(self) -> str:
        """`text` or `records`."""
        return "records" if self.tokenizer is None else "text"

    @property
    def speed(self) -> float:
        """Tokens, or records, of this run's units, divided by its seconds from the arguments to the commit."""
        share = (self.units - self.resumed) / self.units if self.new and self.units else 0.0
        count = self.documents if self.kind == "records" else self.tokens
        return count * share / self.seconds if self.seconds else 0.0
