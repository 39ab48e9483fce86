"""An ingest job from its arguments to its commit; `workers` or `mpi` do the units in between.

1. list the inputs; 2. end here if the dataset has them already; 3. take or train the tokenizer; 4. store the
plan; 5. do the units that have no record yet; 6. make one commit of all units. Every step repeats without harm:
a job that was killed at any point continues when it runs again.
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fmscale.data.ingest.formats import FORMATS
from fmscale.data.ingest.guess import decide
from fmscale.data.ingest.plan import IngestPlan, Options, StoredPlan, load_plan, make_plan, plan_key
from fmscale.data.ingest.policy import IngestPolicy, choose, choose_records
from fmscale.data.ingest.record import UnitRecord, decode_record, finished_units, record_key, total
from fmscale.data.ingest.sample import sample
from fmscale.data.ingest.sources import Listing, list_sources
from fmscale.data.ingest.unit import UnitTask
from fmscale.data.tokenizers.bpe import train_bpe
from fmscale.data.tokenizers.protocol import dtype_of
from fmscale.data.tokenizers.tokenizer import bpe_size, from_json
from fmscale.errors import ConfigError, Conflict, DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.backends.write_once import store_once
from fmscale.store.datasets.commit import Commit
from fmscale.store.datasets.dataset import Dataset, create_or_open
from fmscale.store.datasets.tokenizers import load_tokenizer, store_tokenizer
from fmscale.store.doctor.probe import require_writable
from fmscale.store.open import open_store

TEXT = "text"
"""Field of the text by default."""

RECORD_READS = 32
"""Concurrent reads of records: 10^4 records take 8 s at 25 ms each."""

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
    format: str
    field: str | None
    heldout: float
    strict: bool
    bos: bool | None
    eos: bool | None
    scratch: Path | None
    unit_bytes: int | None
    max_document: int

    def check(self) -> None:
        """Raise ConfigError for an unusable value."""
        if self.kind not in FORMATS:
            remedy = f"Use {' or '.join(FORMATS)}."
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
        if not 0.0 <= self.heldout < 1.0:
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
    commit: int
    """Number of the job's commit in it."""
    job: str
    """Digest of the job."""
    new: bool
    """False if the dataset had these inputs already and nothing was done."""
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


@dataclass(kw_only=True)
class IngestJob:
    """A job whose plan is stored."""

    dataset: Dataset
    request: IngestRequest
    stored: StoredPlan
    task: UnitTask
    progress: Progress
    begin: float
    finished: set[int]
    """Units that earlier runs finished."""
    records: dict[int, UnitRecord] = field(default_factory=dict)
    """Records of the units that this run finished."""

    def __post_init__(self) -> None:
        self.units = self.stored.plan.units()
        self.pending = [unit for unit in range(len(self.units)) if unit not in self.finished]
        self.bytes = sum(file.bytes for file in self.stored.plan.files)
        left = sum(work.bytes for unit in self.pending for work in self.units[unit])
        self.done_bytes = self.bytes - left

    def advance(self, size: int) -> None:
        """Report `size` more raw bytes as done."""
        self.done_bytes += size
        self.progress("writing", self.done_bytes, self.bytes)

    def done(self, record: UnitRecord) -> None:
        """Take the record of a finished unit."""
        self.records[record.unit] = record

    def describe(self, unit: int) -> str:
        """A unit with its first and last file, for an error."""
        first, last = self.units[unit][0].file.source, self.units[unit][-1].file.source
        return f"work unit {unit}, {first}" + (f" to {last}" if last != first else "")


def begin_job(request: IngestRequest, progress: Progress) -> IngestJob | IngestResult:
    """Do the steps before the units. Returns the result at once if the dataset has these inputs already."""
    begin = time.monotonic()
    request.check()
    backend = open_store(request.store)
    progress("listing", 0, 0)
    local = backend.local_path("fmscale.json")
    folder = str(local.parent) if local else ""
    listing = list_sources(request.paths, format=request.format, store=folder, kind=request.kind)
    if request.format == "auto":
        listing = decide(listing, None if request.kind == "records" else request.field or TEXT)
    require_writable(backend)
    dataset = create_or_open(backend, request.dataset)
    commits = dataset.commits()
    wishes = (request.tokenizer, request.bos, request.eos)
    policy = choose_records(commits) if request.kind == "records" else choose(backend, commits, *wishes)
    plan = _open_plan(dataset, listing, request, policy)
    same = next((c for c in commits if c.body["extra"].get("ingest", {}).get("inputs") == plan.inputs), None)
    if same:
        return _result(request.dataset, same, begin=begin, new=False)
    stored = load_plan(backend, request.dataset, plan.job)
    if stored is None:
        progress("training the tokenizer" if bpe_size(policy.name) else "planning", 0, 0)
        stored = _store_plan(backend, request.dataset, plan, policy, listing)
    task = UnitTask(
        store=request.store,
        dataset=request.dataset,
        job=plan.job,
        roots=[root.url for root in listing.roots],
        scratch=str(request.scratch or tempfile.gettempdir()),
        strict=request.strict,
    )
    return IngestJob(
        dataset=dataset,
        request=request,
        stored=stored,
        task=task,
        progress=progress,
        begin=begin,
        finished=finished_units(backend, request.dataset, plan.job),
    )


def commit_job(job: IngestJob, writers: int) -> IngestResult:
    """Make the units of a job visible. Raises DataError if they hold no document."""
    job.progress("committing", job.bytes, job.bytes)
    plan = job.stored.plan
    records = _records(job)
    skipped = total(records, plan.skipped)
    if job.request.strict:
        skipped.refuse_bad()
    if not any(record.documents for record in records):
        raise DataError(
            f"The inputs hold no {'document' if plan.options.field else 'record'}",
            found=skipped.counted() or "empty files",
            remedy=f"{skipped.remedy() or 'Name files that hold some.'} Nothing was committed.",
        )
    splits = sorted({split for record in records for split in record.seals})
    segments = {
        split: [(record.unit, record.seals[split]) for record in records if split in record.seals] for split in splits
    }
    name = job.stored.tokenizer
    commit = job.dataset.append_commit(
        job=plan.job,
        segments=segments,
        kind="records" if name is None else "tokens",
        tokenizer=name,
        dtype="" if name is None else dtype_of(from_json(load_tokenizer(job.dataset.backend, name))),
        bos=job.stored.bos,
        eos=job.stored.eos,
        extra={
            "ingest": {
                "inputs": plan.inputs,
                "tokenizer": plan.options.tokenizer,
                "files": len(plan.files),
                "raw_bytes": job.bytes,
                "text_bytes": sum(record.text_bytes for record in records),
                "units": len(job.units),
                "skipped": dict(sorted(skipped.items())),
                "guessed": plan.guessed,
            }
        },
    )
    return _result(job.request.dataset, commit, begin=job.begin, new=True, resumed=len(job.finished), writers=writers)


def _open_plan(dataset: Dataset, listing: Listing, request: IngestRequest, policy: IngestPolicy) -> IngestPlan:
    """The plan, under the first job digest that no retired commit has."""
    options = Options(
        field="" if request.kind == "records" else request.field or TEXT,
        heldout=request.heldout,
        tokenizer=policy.name,
        bos=policy.bos,
        eos=policy.eos,
        max_document=request.max_document,
    )
    while True:
        plan = make_plan(listing, options, request.unit_bytes)
        try:
            dataset.check_open(plan.job)
        except Conflict:
            options = replace(options, again=options.again + 1)
        else:
            return plan


def _store_plan(backend: Backend, dataset: str, plan: IngestPlan, policy: IngestPolicy, listing: Listing) -> StoredPlan:
    """Store the plan with its tokenizer. Returns the job's first stored plan."""
    tokenizer, digest, bos, eos = policy.tokenizer, None, None, None
    if size := bpe_size(policy.name):
        tokenizer = train_bpe(sample(plan, [root.url for root in listing.roots], size), size)
    if tokenizer is not None:
        bos, eos = policy.ids(tokenizer)
        digest = store_tokenizer(backend, tokenizer.to_json())
    store_once(backend, plan_key(dataset, plan.job), plan.encode(digest, bos, eos))
    stored = load_plan(backend, dataset, plan.job)
    assert stored is not None, "it was just stored, and nothing deletes plans"
    return stored


def _records(job: IngestJob) -> list[UnitRecord]:
    """The records of all units in order."""

    def read(unit: int) -> UnitRecord:
        key = record_key(job.request.dataset, job.stored.plan.job, unit)
        return job.records.get(unit) or decode_record(job.dataset.backend.get(key))

    with ThreadPoolExecutor(RECORD_READS) as pool:
        return list(pool.map(read, range(len(job.units))))


def _result(
    dataset: str, commit: Commit, *, begin: float, new: bool, resumed: int = 0, writers: int = 0
) -> IngestResult:
    summary: dict[str, Any] = commit.body["extra"]["ingest"]
    return IngestResult(
        dataset=dataset,
        commit=commit.number,
        job=commit.job,
        new=new,
        documents=sum(counts.documents for counts in commit.totals.values()),
        tokens=sum(counts.tokens for counts in commit.totals.values()),
        splits={split: asdict(counts) for split, counts in commit.totals.items()},
        guessed=summary.get("guessed", {}),
        tokenizer=commit.tokenizer,
        **{key: summary[key] for key in ("raw_bytes", "text_bytes", "skipped", "units")},
        resumed=resumed,
        writers=writers,
        seconds=time.monotonic() - begin,
    )
