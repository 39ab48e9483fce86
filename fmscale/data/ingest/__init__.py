"""Raw files to a dataset: `ingest` is the public function, and `fmscale ingest` calls it.

- `request.py`  arguments and outcome of a job
- `job.py`  a job from its arguments to its commit
- `sources.py`  paths, folders, globs and URLs become one sorted listing
- `guess.py`  formats by first bytes, for names that do not show the format
- `policy.py`  the tokenizer, and BOS and EOS around documents
- `content.py`, `tally.py`  hashes of contents, and of all documents of a file
- `ledger.py`  the files that each commit of a dataset took
- `additions.py`, `versions.py`  the files that a dataset lacks; new versions of files
- `plan.py`  the work units, a function of the listing and the options
- `sample.py`  the part of a corpus that trains a tokenizer
- `unit.py`  a work unit: read, tokenize, write, seal
- `blocks.py`  records in scratch files until the end of their unit decides the schema
- `messages.py`  records of messages in their one form
- `record.py`  the outcome of a unit, and the counts of input passed over
- `files.py`  input files, opened here or on a store
- `apart.py`, `reader.py`  a separate process that reads tables
- `workers.py`, `worker.py`, `mpi.py`  writers as processes, and as MPI ranks
- `repair.py`  documents that a dataset holds twice
- `scratch.py`  a folder for unfinished segments
- `formats/`  documents of each format
"""

from collections.abc import Sequence
from pathlib import Path

from fmscale.data.chat.formats import SHAPES
from fmscale.data.ingest.formats import MAX_DOCUMENT
from fmscale.data.ingest.job import begin_job, commit_job
from fmscale.data.ingest.request import IngestRequest, IngestResult, Progress
from fmscale.data.ingest.unit import open_writer
from fmscale.data.ingest.workers import run_processes
from fmscale.data.workers.pool import most_workers
from fmscale.errors import ConfigError
from fmscale.runtime.world import read_world

__all__ = ["IngestResult", "ingest"]


def ingest(
    paths: Sequence[str],
    *,
    store: str,
    dataset: str,
    kind: str = "text",
    tokenizer: str | None = None,
    format: str = "auto",
    field: str | None = None,
    heldout: float | None = None,
    workers: int | None = None,
    strict: bool = False,
    replace: bool = False,
    dry_run: bool = False,
    bos: bool | None = None,
    eos: bool | None = None,
    scratch: Path | None = None,
    unit_bytes: int | None = None,
    max_document: int = MAX_DOCUMENT,
    progress: Progress | None = None,
) -> IngestResult:
    """Turn files into one commit of a dataset; the same call continues a job that was killed.

    `paths`: files, folders, globs, and URLs of any of these. `store`, `dataset`: the target; a missing dataset is
    made. `kind`: `text` makes a document of each text; `records` keeps all columns of tables, JSON and WebDataset tars,
    and makes a record of each image, audio and video file with the NAME.txt, NAME.json or NAME.caption beside it;
    `chat`, `completion`, `preference`, `ranking` and `prompts` make records of messages (`data.chat.formats`).
    `tokenizer`: `bpe:N` (trained on the corpus), `bytes`, or the path of a tokenizer.json; None means the dataset's
    own, or `bpe:8192` for a new dataset. `format`: auto (by extension, or else by the first bytes), text, jsonl, json
    (an array), parquet or arrow, and for records tar or media. `field`: path of the text in records, `a.b.text`; None
    means `text`. `heldout`: share of the documents that go to the split of that name, by their content; None means the
    dataset's own share, or 0 for a new dataset. `workers`: processes, by default one for each core; under mpirun the
    ranks are the writers, and every rank calls this function and gets the result. `strict`: damaged input and changed
    files are an error; otherwise they are passed over and counted. `replace`: a changed file replaces the documents
    that the dataset has of it. `dry_run`: only say what would be done. `bos`, `eos`: a token before and after each
    document; None means the dataset's own policy, or no BOS and an EOS. `scratch`: local folder for unfinished
    segments. `unit_bytes`: raw input of a work unit, a part of the job's identity; by default the corpus decides.
    `max_document`: bytes of the largest document or record; longer ones are skipped and counted, and a writer takes up
    to four times as much memory. Records refuse `tokenizer`, `field`, `bos` and `eos`.

    The result is the same for any number of writers. Files that the dataset has already, at any place and under any
    name, are not ingested again; `docs/adding-data.md` has the rules. Without any new file the result has `new` False.

    Raises ConfigError, DataError (also if files changed and nothing else is new), Conflict if another ingest added
    some of the files meanwhile, and StoreError. After an error no commit is visible, and sealed units stay.
    """
    request = IngestRequest(
        paths=tuple(str(path) for path in paths),
        store=store,
        dataset=dataset,
        kind="records" if kind in SHAPES else kind,
        shape=kind if kind in SHAPES else "",
        tokenizer=tokenizer,
        format=format,
        field=field,
        heldout=heldout,
        strict=strict,
        replace=replace,
        dry_run=dry_run,
        bos=bos,
        eos=eos,
        scratch=scratch,
        unit_bytes=unit_bytes,
        max_document=max_document,
    )
    report = progress or (lambda phase, done, total: None)
    world = read_world()
    if world.world_size > 1:
        if world.launcher == "torchrun":
            raise ConfigError(
                "ingest runs alone or under mpirun or srun, where its ranks share the work",
                found=world.launcher,
                remedy="Start `fmscale ingest` by itself, or with mpirun -n 8.",
            )
        if workers not in (None, 1) or any(url.startswith("memory://") for url in (store, *request.paths)):
            raise ConfigError(
                "Under MPI each rank is one writer, and memory:// is seen by one process only",
                found=f"workers={workers}",
                remedy="Leave --workers out; use a store that all ranks reach.",
            )
        from fmscale.data.ingest.mpi import ingest_on_ranks

        return ingest_on_ranks(request, world, report)
    most = most_workers(workers, (store, *request.paths), "writers")
    job = begin_job(request, report)
    if isinstance(job, IngestResult):
        return job
    writers = max(1, min(most, len(job.pending)))
    job.advance(0)
    if writers > 1:
        run_processes(job, writers)
    elif job.pending:
        with open_writer(job.task) as writer:
            for unit in job.pending:
                job.done(writer.run(unit, job.advance))
    return commit_job(job, writers)
