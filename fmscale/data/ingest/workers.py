"""Local writers: processes that do units of an ingest job."""

from dataclasses import asdict
from pathlib import Path

from fmscale.data.ingest.job import IngestJob
from fmscale.data.ingest.record import decode_record
from fmscale.data.ingest.scratch import sweep
from fmscale.data.workers.pool import UnitWork, run_units


def run_processes(job: IngestJob, count: int) -> None:
    """Do the pending units in `count` processes. Raises the errors of `run_units`; sealed units stay."""
    work = UnitWork(
        name="ingest",
        module=f"{__package__}.worker",
        task=asdict(job.task),
        units=job.pending,
        describe=job.describe,
        done=lambda text: job.done(decode_record(text.encode())),
        advance=job.advance,
    )
    try:
        run_units(work, count)
    finally:
        sweep(Path(job.task.scratch))
