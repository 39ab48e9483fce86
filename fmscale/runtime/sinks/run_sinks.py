"""All sinks of a run, on rank 0: metrics.jsonl is written at once, each other sink has a thread and holds no step."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from queue import SimpleQueue
from threading import Thread
from typing import Any, cast

from fmscale.config import Config
from fmscale.config.checks import together
from fmscale.config.kinds import kind_of
from fmscale.config.metrics import ConsoleConfig, JsonlConfig
from fmscale.errors import ConfigError, FmscaleError
from fmscale.runtime.sinks.jsonl import JsonlSink
from fmscale.runtime.sinks.protocol import Ending, Record, RunInfo, Sink
from fmscale.text import scrub

logger = logging.getLogger(__name__)

PACKAGES = {
    "tensorboard": ("sinks", "TensorBoardSink"),
    "wandb": ("wandb", "WandbSink"),
    "mlflow": ("mlflow", "MlflowSink"),
}
"""Kinds with a package and a module here of the same name -> our extra with the package, the class in the module."""
PENDING = 10_000
"""Records that may wait for a slow sink; later records are lost to it."""
CLOSE_SECONDS = 30.0
"""Seconds that the end of a job waits for a sink."""


def check_sinks(config: Config) -> None:
    """Raise ConfigError for sinks whose packages are not installed, and for classes without `open`."""
    problems = []
    for i, sink in enumerate(config.metrics.sinks):
        kind, place = kind_of(sink), config.place(f"metrics.sinks.{i}")
        cause, remedy = "", ""
        if kind in PACKAGES and find_spec(kind) is None:
            cause, remedy = "needs a package that is not installed", f"pip install 'fmscale[{PACKAGES[kind][0]}]'"
        elif ":" in kind and not callable(getattr(sink, "open", None)):
            cause, remedy = "names a class without `open`", "Give it `def open(self, run: RunInfo) -> Sink`."
        if cause:
            problems.append(ConfigError(f"{place} {cause}", found=kind, remedy=remedy))
    if problems:
        raise together(problems)


def open_sink(config: Any, run: RunInfo) -> Sink:
    """Begin or continue a run at a sink. Raises the errors of its package."""
    kind = kind_of(config)
    if kind not in PACKAGES:
        return cast(Sink, config.open(run))
    return cast(Sink, getattr(import_module(f"fmscale.runtime.sinks.{kind}"), PACKAGES[kind][1])(config, run))


class SinkThread(Thread):
    """A sink that this thread opens, feeds and closes. Its first failure is logged; it still gets later records."""

    def __init__(self, config: Any, run: RunInfo) -> None:
        super().__init__(name=f"sink {kind_of(config)}", daemon=True)
        self.info = run
        self._config = config
        self._told = False
        self._queue: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    def put(self, method: str, value: Any) -> None:
        """Have a method of the sink called."""
        if self._queue.qsize() < PENDING:
            self._queue.put((method, value))
        else:
            self._tell(f"it takes records more slowly than they come, and {PENDING:_} wait")

    def close(self, outcome: Ending) -> None:
        """Close the sink once it has all records; leave it after a time limit, or if it was never opened."""
        if self.is_alive():
            self._queue.put(("close", outcome))
            self.join(CLOSE_SECONDS)
        if self.is_alive():
            self._tell(f"it has not taken all records {CLOSE_SECONDS:.0f} s after the end")

    def run(self) -> None:
        """Open the sink, and call its methods until it is closed."""
        method, value = "open", None
        try:
            sink = open_sink(self._config, self.info)
        except Exception as error:
            self._tell(error)
            return
        while method != "close":
            method, value = self._queue.get()
            try:
                getattr(sink, method)(value)
            except Exception as error:
                self._tell(error)

    def _tell(self, error: Exception | str) -> None:
        if self._told:
            return
        self._told = True
        ours = isinstance(error, (FmscaleError, str))
        cause = scrub(str(error) if ours else f"{type(error).__name__}: {error}")
        logger.warning(
            "the sink %s fails: %s. Training goes on, and metrics.jsonl has all records. Correct the cause; the next "
            "start of the run tries it again.",
            kind_of(self._config),
            cause.removesuffix("."),
        )


class RunSinks:
    """The sinks of a job. Records of the time before `open` wait for it, except in metrics.jsonl."""

    def __init__(self, file: JsonlSink | None, configs: Sequence[Any], run: RunInfo) -> None:
        self._file = file
        inside = (JsonlConfig, ConsoleConfig)
        self._threads = [SinkThread(config, run) for config in configs if file and not isinstance(config, inside)]

    def open(self, first_step: int) -> None:
        """Begin or continue the run at every sink, after `first_step` steps."""
        for thread in self._threads:
            thread.info = replace(thread.info, first_step=first_step)
            thread.start()

    def put(self, method: str, record: Record) -> None:
        """Give all sinks the record of a "step" or an "event"."""
        if self._file:
            self._file.write(record)
        for thread in self._threads:
            thread.put(method, record)

    def close(self, outcome: Ending) -> None:
        """End the job at every sink."""
        for thread in self._threads:
            thread.close(outcome)
        if self._file:
            self._file.close()
