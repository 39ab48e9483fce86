"""Raw files to a dataset: `ingest`, the public function, and what `fmscale ingest` calls."""

import os
from collections.abc import Sequence
from pathlib import Path

from fmscale.data.ingest.job import (
    IngestJob,
    IngestRequest,
    IngestResult,
    Progress,
    begin_job,
    commit_job,
    is_private,
)
from fmscale.data.ingest.workers import run_here, run_processes
from fmscale.errors import ConfigError
from fmscale.runtime.world import read_world

__all__ = ["IngestResult", "ingest"]


def ingest(
    paths: Sequence[str],
    *,
    store: str,
    dataset: str,
    tokenizer: str | None = None,
    format: str = "auto",
    field: str = "text",
    heldout: float = 0.0,
    workers: int | None = None,
    strict: bool = False,
    bos: bool | None = None,
    eos: bool | None = None,
    scratch: Path | None = None,
    unit_bytes: int | None = None,
    progress: Progress | None = None,
) -> IngestResult:
    """Turn files into one commit of a dataset; run it again to continue where it was killed.

    `paths`: files, folders, globs, and URLs of any of these. `store`, `dataset`: where they go; the dataset
    is made if it is not there. `tokenizer`: `bpe:N` (trained on the corpus), `bytes`, or the path of a
    tokenizer.json; None means the dataset's own, or `bpe:8192` for a new one. `format`: auto (by extension,
    or else by the first bytes), text, jsonl, json (an array), parquet or arrow. `field`: path of the text in
    records, `a.b.text`. `heldout`: share of the
    documents that go to the split of that name. `workers`: processes, one a core unless given; under mpirun
    the ranks are the writers, and every rank calls this and gets the result. `strict`: damaged input is an
    error instead of being skipped and counted. `bos`, `eos`: token before and after each document; None means
    the dataset's own policy, or no BOS and an EOS. `scratch`: local folder for unfinished segments.
    `unit_bytes`: raw input of a work unit, a part of the job's identity; chosen by the corpus unless given.

    The result is the same for any number of writers. Inputs that the dataset has already (same names, sizes
    and times, same options) are not ingested again; the result then has `new` False.

    Raises ConfigError, DataError and StoreError; nothing is visible after an error, and what is sealed stays.
    """
    request = IngestRequest(
        paths=tuple(str(path) for path in paths),
        store=store,
        dataset=dataset,
        tokenizer=tokenizer,
        format=format,
        field=field,
        heldout=heldout,
        strict=strict,
        bos=bos,
        eos=eos,
        scratch=scratch,
        unit_bytes=unit_bytes,
    )
    tell = progress or (lambda phase, done, total: None)
    world = read_world()
    private = is_private(request.paths, store)
    if world.world_size > 1:
        _check_ranks(world.launcher, workers, private)
        from fmscale.data.ingest.mpi import ingest_on_ranks

        return ingest_on_ranks(request, world, tell)
    if workers is not None and (workers < 1 or (private and workers > 1)):
        raise ConfigError(
            "This job cannot have that many writers",
            found=workers,
            remedy="Use 1 or more; memory:// is seen by one process only.",
        )
    job = begin_job(request, tell)
    if isinstance(job, IngestResult):
        return job
    wanted = 1 if private else workers or len(os.sched_getaffinity(0))
    writers = max(1, min(wanted, len(job.pending)))
    _run(job, writers, tell)
    return commit_job(job, tell, writers)


def _run(job: IngestJob, writers: int, progress: Progress) -> None:
    """Do the pending units in this process, or in as many others as there are writers."""

    def advance(size: int) -> None:
        job.done_bytes += size
        progress("writing", job.done_bytes, job.bytes)

    advance(0)
    if not job.pending:
        return
    if writers == 1:
        run_here(job.assignment, job.pending, job.done, advance)
    else:
        run_processes(job.assignment, job.pending, writers, job.describe, job.done, advance)


def _check_ranks(launcher: str, workers: int | None, private: bool) -> None:
    if launcher == "torchrun":
        raise ConfigError(
            "ingest runs alone or under mpirun or srun, where its ranks share the work",
            found=launcher,
            remedy="Start `fmscale ingest` by itself, or with mpirun -n 8.",
        )
    if workers not in (None, 1) or private:
        raise ConfigError(
            "Under MPI each rank is one writer, and memory:// is seen by one process only",
            found=f"workers={workers}",
            remedy="Leave --workers out; use a store that all ranks reach.",
        )
