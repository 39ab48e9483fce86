"""A writer as a process: `python -m fmscale.data.ingest.worker`, started by `workers`."""

from collections.abc import Iterator
from contextlib import contextmanager

from fmscale.data.ingest.unit import UnitTask, open_writer
from fmscale.data.workers.messages import Message
from fmscale.data.workers.serve import Run, serve


@contextmanager
def _open(task: Message) -> Iterator[Run]:
    with open_writer(UnitTask(**task)) as writer:
        yield lambda unit, advance: writer.run(unit, advance).encode().decode()


if __name__ == "__main__":
    serve(_open)
