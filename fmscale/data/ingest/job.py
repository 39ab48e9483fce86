"""An ingest job from its arguments to its commit; `workers` or `mpi` do the units in between.

1. list the inputs; 2. find the files that the dataset lacks, and end here if there are none; 3. take or train the
tokenizer; 4. store the plan; 5. do the units that have no record yet; 6. make one commit of all units. Every step
repeats without harm: a job that was killed at any point continues when it runs again.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from fmscale.data.ingest.additions import REPLACED, Additions, find_additions, grouped, stamp
from fmscale.data.ingest.content import Tally
from fmscale.data.ingest.formats import SINGLE
from fmscale.data.ingest.ledger import KnownFile, Ledger, load_ledger, store_ledger
from fmscale.data.ingest.plan import TRAIN, IngestPlan, Options, StoredPlan, load_plan, make_plan, plan_key
from fmscale.data.ingest.policy import IngestPolicy, choose, choose_records
from fmscale.data.ingest.record import FIRST_NAMES, UnitRecord, decode_record, finished_units, record_key, total
from fmscale.data.ingest.request import IngestRequest, IngestResult, Progress
from fmscale.data.ingest.sample import sample
from fmscale.data.ingest.sources import Listing, list_sources
from fmscale.data.ingest.unit import UnitTask
from fmscale.data.ingest.versions import mask_earlier, pins_of
from fmscale.data.tokenizers.bpe import train_bpe
from fmscale.data.tokenizers.protocol import dtype_of
from fmscale.data.tokenizers.tokenizer import bpe_size, from_json
from fmscale.errors import Conflict, DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.backends.write_once import store_once
from fmscale.store.datasets.commit import Commit
from fmscale.store.datasets.dataset import Dataset, create_or_open
from fmscale.store.datasets.tokenizers import load_tokenizer, store_tokenizer
from fmscale.store.doctor.probe import require_writable
from fmscale.store.open import open_store, parse_url

TEXT = "text"
"""Field of the text by default."""

RECORD_READS = 32
"""Concurrent reads of records: 10^4 records take 8 s at 25 ms each."""


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
    found: Additions
    """The files to add."""
    ledger: Ledger
    """Files of the live commits that `found` refers to."""
    commits: frozenset[int]
    """Numbers of these commits."""
    records: dict[int, UnitRecord] = field(default_factory=dict)
    """Records of the units that this run finished."""

    def __post_init__(self) -> None:
        self.units = self.stored.plan.units()
        self.pending = [unit for unit in range(len(self.units)) if unit not in self.finished]
        self.bytes = sum(work.bytes for unit in self.units for work in unit)
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
    """Do the steps before the units. Returns the result at once if there is nothing to add, or of a dry run.

    Raises DataError if files changed and nothing else is new, or, with `strict`, if any changed.
    """
    begin = time.monotonic()
    request.check()
    backend = _open(request)
    progress("listing", 0, 0)
    local = backend.local_path("fmscale.json")
    folder = str(local.parent) if local else ""
    listing = list_sources(request.paths, format=request.format, store=folder, kind=request.kind)
    if not request.dry_run:
        require_writable(backend)
    dataset = create_or_open(backend, request.dataset)
    commits = dataset.commits()
    wishes = (request.tokenizer, request.bos, request.eos)
    policy = choose_records(commits, request.shape) if request.kind == "records" else choose(backend, commits, *wishes)
    ledger = load_ledger(backend, request.dataset, commits)
    options = Options(
        field="" if request.kind == "records" else request.field or TEXT,
        heldout=_share(request, ledger),
        tokenizer=policy.name,
        bos=policy.bos,
        eos=policy.eos,
        max_document=request.max_document,
        shape=request.shape,
    )
    scratch = str(request.scratch or tempfile.gettempdir())
    found = find_additions(
        listing,
        ledger,
        path=options.field,
        shape=options.shape,
        format=request.format,
        replacing=request.replace,
        scratch=scratch,
        notice=lambda: progress("comparing", 0, 0),
    )
    if request.dry_run or not found.listing.files:
        if not request.dry_run:
            found.refuse_changed()
        return _result(request, commits[-1] if commits else None, found, begin=begin)
    if request.strict:
        found.refuse_changed()
    options = replace(options, replaced=tuple(sorted(found.fates[REPLACED])))
    options = replace(options, pins=pins_of(dataset, found, ledger, options, policy.tokenizer))
    plan, stored = _open_plan(dataset, found.listing, request, options)
    if stored is None:
        progress("training the tokenizer" if bpe_size(policy.name) else "planning", 0, 0)
        stored = _store_plan(backend, request.dataset, plan, policy, listing)
    task = UnitTask(
        store=request.store,
        dataset=request.dataset,
        job=plan.job,
        roots=[root.url for root in listing.roots],
        scratch=scratch,
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
        found=found,
        ledger=ledger,
        commits=frozenset(commit.number for commit in commits),
    )


def commit_job(job: IngestJob, writers: int) -> IngestResult:
    """Make the units of a job visible. Raises DataError if they hold no document, and Conflict if another commit took
    some of the files meanwhile.
    """
    job.progress("committing", job.bytes, job.bytes)
    plan, backend, name = job.stored.plan, job.dataset.backend, job.request.dataset
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
    ledger = {}
    if not plan.options.by_name:
        entries = [*_entries(plan, records), *job.found.moved]
        ledger["ledger"] = store_ledger(backend, name, plan.job, entries, plan.options)
    tokenizer = job.stored.tokenizer
    commit = job.dataset.append_commit(
        job=plan.job,
        segments=segments,
        kind="records" if tokenizer is None else "tokens",
        tokenizer=tokenizer,
        dtype="" if tokenizer is None else dtype_of(from_json(load_tokenizer(backend, tokenizer))),
        bos=job.stored.bos,
        eos=job.stored.eos,
        extra={
            "ingest": {
                **ledger,
                "heldout": plan.options.heldout,
                **({"shape": plan.options.shape} if plan.options.shape else {}),
                "pins": plan.options.pins,
                "tokenizer": plan.options.tokenizer,
                "files": len(plan.files),
                "raw_bytes": job.bytes,
                "text_bytes": sum(record.text_bytes for record in records),
                "units": len(job.units),
                "skipped": dict(sorted(skipped.items())),
                "guessed": plan.guessed,
            }
        },
        masks=mask_earlier(job.dataset, plan.options.replaced, job.ledger),
        recheck=partial(_check_others, job),
    )
    resumed = len(job.finished)
    return _result(job.request, commit, job.found, begin=job.begin, new=True, resumed=resumed, writers=writers)


def _open(request: IngestRequest) -> Backend:
    """The store; for a dry run it is read only, and empty if its folder is not there."""
    place = parse_url(request.store)
    missing = request.dry_run and place.scheme == "file" and not Path(place.bucket).exists()
    return open_store(f"memory://{uuid4().hex}" if missing else request.store, read_only=request.dry_run)


def _share(request: IngestRequest, ledger: Ledger) -> float:
    """The share of held-out documents. Raises DataError for another share than the dataset's."""
    if ledger.heldout is None or request.heldout in (None, ledger.heldout):
        return request.heldout or ledger.heldout or 0.0
    raise DataError(
        f"The dataset holds out another share of its documents, {ledger.heldout:g}",
        found=f"--heldout {request.heldout:g}",
        remedy="Leave --heldout out to use the dataset's share, or ingest into a dataset of another name.",
    )


def _entries(plan: IngestPlan, records: Sequence[UnitRecord]) -> Iterator[KnownFile]:
    """The files of a job for the ledger."""
    tallies: dict[str, Tally] = {}
    splits: dict[str, str] = {}
    for record in records:
        splits |= record.splits
        for source, tally in record.tallies.items():
            tallies.setdefault(source, Tally()).merge(tally)
    for main, beside in grouped(plan.files):
        yield KnownFile(
            source=main.source,
            place=main.place,
            format=main.format,
            stamp=stamp(main, beside),
            bytes=main.bytes,
            changed=main.changed,
            begin=main.begin,
            tally=tallies.get(main.source) or Tally(stop=main.begin),
            split=splits.get(main.source, TRAIN) if main.format in SINGLE else "",
        )


def _check_others(job: IngestJob, live: Sequence[Commit]) -> None:
    """Raise Conflict if a commit that was made since the job's plan has some of its files or other pins."""
    others = [commit for commit in live if commit.number not in job.commits]
    ledger = load_ledger(job.dataset.backend, job.request.dataset, others)
    options, listed = job.stored.plan.options, job.stored.plan.files
    both = [file.source for file in listed if file.source in ledger.files or file.place in ledger.places]
    if both or ledger.pins.items() - options.pins.items() or ledger.heldout not in (None, options.heldout):
        raise Conflict(
            f"Another ingest added to the dataset meanwhile (commit {others[-1].number})",
            found=", ".join(both[:FIRST_NAMES]) or "other splits",
            remedy="Run this one again: it passes over what is there now.",
        )


def _open_plan(
    dataset: Dataset, listing: Listing, request: IngestRequest, options: Options
) -> tuple[IngestPlan, StoredPlan | None]:
    """The plan under the first job digest without a commit, and the stored plan of an earlier run of these files."""
    live = {commit.job for commit in dataset.commits()}
    if not live:
        plan = make_plan(listing, replace(options, by_name=True), request.unit_bytes)
        if (stored := load_plan(dataset.backend, request.dataset, plan.job)) is not None:
            return plan, stored  # a job that was killed before this version
    while True:
        plan = make_plan(listing, options, request.unit_bytes)
        with suppress(Conflict):
            dataset.check_open(plan.job)
            stored = load_plan(dataset.backend, request.dataset, plan.job)
            if plan.job not in live and (stored is None or plan.same_state(stored.plan)):
                return plan, stored
        options = replace(options, again=options.again + 1)


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
    request: IngestRequest,
    commit: Commit | None,
    found: Additions,
    *,
    begin: float,
    new: bool = False,
    resumed: int = 0,
    writers: int = 0,
) -> IngestResult:
    summary: dict[str, Any] = {"raw_bytes": 0, "text_bytes": 0, "skipped": {}, "guessed": {}, "units": 0}
    if commit and not request.dry_run:
        summary |= commit.body["extra"].get("ingest", {})
    else:
        summary |= {"raw_bytes": sum(file.bytes for file in found.listing.files)}
        summary |= {"skipped": found.listing.skipped, "guessed": found.listing.guessed}
    totals = commit.totals if commit and not request.dry_run else {}
    most = None if request.dry_run else FIRST_NAMES
    return IngestResult(
        dataset=request.dataset,
        commit=commit.number if commit else None,
        job=commit.job if commit else "",
        new=new,
        files={fate: {"count": len(names), "first": names[:most]} for fate, names in found.fates.items() if names},
        documents=sum(counts.documents for counts in totals.values()),
        tokens=sum(counts.tokens for counts in totals.values()),
        splits={split: asdict(counts) for split, counts in totals.items()},
        tokenizer=commit.tokenizer if commit else None,
        **{key: summary[key] for key in ("raw_bytes", "text_bytes", "skipped", "guessed", "units")},
        resumed=resumed,
        writers=writers,
        seconds=time.monotonic() - begin,
    )
