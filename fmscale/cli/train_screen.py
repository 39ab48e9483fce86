"""Terminal of a run: facts about it, the phases of its start, its steps and events."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from fmscale.cli.output import human_bytes, human_seconds
from fmscale.config import Config, derive_batch
from fmscale.errors import ConfigError
from fmscale.runtime.axes import axes_of
from fmscale.runtime.sinks.console import dim, is_screen, print_record
from fmscale.runtime.sinks.jsonl import read_last
from fmscale.runtime.world import World
from fmscale.text import clean

STEP = ("step", "loss", "grad_norm", "mfu", "data_stall", "ETA")
"""Keys of a step that are shown, with its rate before `mfu`; metrics.jsonl has the rest."""
KEPT = frozenset({"entry", "snapshot_seconds", "sealed_seconds"})
"""Keys of an event that are in metrics.jsonl only."""
LONG_SECONDS = 0.5
"""A phase that took less time gets no line."""
LAST_STEPS = 50
"""Last steps of an earlier job: their speed gives the estimate of the remaining time."""


class RunScreen:
    """Lines of a run: facts as they become known, phases with the time that they took, steps, events.

    On a terminal the line of the running phase is overwritten; elsewhere a phase is printed when it has ended.
    """

    def __init__(
        self, config: Config, world: World, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._folder = Path(config.train.folder) / config.train.run
        self._world = world
        self._stream = stream or sys.stderr
        self._clock = clock
        self._began = clock()
        self._phase: tuple[str, float] | None = None
        self._first_step = 0
        self._paced: tuple[int, float] | None = None
        self._shown = 0
        self._opened: Mapping[str, Any] = {}

    def announce(self) -> None:
        """Print the facts that follow from the config alone, before the slow imports."""
        config, world = self._config, self._world
        self._fact("run", f"{config.train.run}, in {self._folder}")
        self._fact("store", config.store.url)
        self._fact("ranks", f"{world.world_size}, ZeRO stage {config.train.zero_stage}")
        try:
            batch = derive_batch(config.batch, axes_of(world)["dp"].size, place=config.place("batch"))
        except ConfigError:
            return  # The same error stops the run after the ranks have met: all of them end, and rank 0 prints it.
        count, length, flat = batch.global_batch, config.data.sequence_length, batch.forward_tokens
        rows = f"rows of {length:,} = {count * length:,} tokens a step"
        self._fact("batch", f"{count:,} " + (f"samples in forwards of {flat:,} tokens or less" if flat else rows))
        if config.train.steps is not None:
            tokens = "" if flat else f", {config.train.steps * count * length:,} tokens"
            self._fact("steps", f"{config.train.steps:,}{tokens}")

    def phase(self, name: str) -> None:
        """Begin a phase; the phase before has ended."""
        self._end()
        if name == "train":
            if not self._paced:
                self._paced = self._first_step, self._clock()
                self._tell_rest()
            return
        self._phase = name, self._clock()
        if is_screen(self._stream):
            # The cursor returns to the line's start, so that other output replaces the line and does not follow it.
            self._print(dim(f"  {name} …", self._stream), end="\r")

    def event(self, record: Mapping[str, Any]) -> None:
        """Print an event; a failed save is left out, as the log has reported it."""
        self._end()
        if record["event"] == "opened":
            self._tell_opened(record)
        elif "reason" not in record:
            plain = {name: value for name, value in record.items() if not isinstance(value, (dict, list))}
            shown = {name: value for name, value in plain.items() if name not in KEPT}
            if "bytes_written" in shown:
                shown["written"] = human_bytes(shown.pop("bytes_written"))
            print_record(shown, self._stream)
        if record["event"] == "resumed":
            self._first_step, self._paced, self._shown = record["step"], None, 0
            self._opened = {**self._opened, "steps": record["steps"]}

    def step(self, record: Mapping[str, Any]) -> None:
        """Print a step, the run's progress and the remaining time. The first estimate takes the pace since the begin of
        training; later estimates take the pace since the first record, as the first step is slower.
        """
        self._end()
        step, steps, now = record["step"], record["steps"], self._clock()
        shown = {**record, "step": f"{step:,}/{steps:,}"}
        if self._paced and step > self._paced[0] and step < steps:
            begin, since = self._paced
            shown["ETA"] = human_seconds((steps - step) * (now - since) / (step - begin))
        self._shown += 1
        if self._shown == 1:
            self._paced = step, now
        rates = tuple(name for name in record if name.endswith("_per_second"))
        print_record(shown, self._stream, (*STEP[:3], *rates, *STEP[3:]))

    def end(self, last_step: int, stop: str) -> None:
        """Print the end of the run, and the reason `stop` unless it is empty."""
        self._end()
        summary = f"run {self._config.train.run}: step {last_step}, {f'stopped by {stop}' if stop else 'complete'}"
        self._print(f"{clean(summary)}, after {human_seconds(self._clock() - self._began)}")

    def _fact(self, name: str, value: str) -> None:
        self._print(f"{name:<7} {clean(value)}")

    def _print(self, text: str, end: str = "\n") -> None:
        with suppress(OSError):  # a closed terminal is no failure of the run
            print(text, end=end, file=self._stream, flush=True)

    def _end(self) -> None:
        """Print the time of the phase that ends; erase its line if the phase was short."""
        if self._phase is None:
            return
        name, since = self._phase
        self._phase = None
        seconds, width = self._clock() - since, len(f"  {name} …")
        if seconds >= LONG_SECONDS:
            line = f"  {name} {seconds:.1f} s"
            self._print(dim(line, self._stream) + " " * (width - len(line)))
        elif is_screen(self._stream):
            self._print(" " * width, end="\r")

    def _tell_opened(self, record: Mapping[str, Any]) -> None:
        self._opened = record
        self._fact("device", record["device"])
        vocabulary = f", vocabulary {record['vocab_size']:,}" if record["vocab_size"] else ""
        self._fact("model", f"{record['parameters']:,} parameters{vocabulary}")
        if self._config.train.steps is None and record["steps"]:
            tokens = record["steps"] * record["tokens_per_step"]
            self._fact("steps", f"{record['steps']:,}, {tokens:,} tokens")
        for source in record["sources"]:
            kind = "records" if "records" in source else "tokens"
            rest = f" ({source['left_out']:,} in no row)" if source["left_out"] else ""
            amount = f"{source[kind]:,} {kind}{rest}"
            self._fact("data", f"{source['label']}: {amount}, {source['epochs']:.2g} epochs in all")

    def _tell_rest(self) -> None:
        """Print the remaining time, by the speed of the run's last steps if the same number of ranks took them."""
        rate = last_rate(self._folder / "metrics.jsonl", self._world.world_size) if self._first_step else None
        tokens = self._opened["tokens_per_step"]  # None for flat forwards
        if rate is None or tokens is None:
            self._fact("time", "told after the first step")
            return
        left = (self._opened["steps"] - self._first_step) * tokens
        self._fact("time", f"about {human_seconds(left / rate)} at the {rate:,.0f} tokens/s of its last steps")


def last_rate(path: Path, world_size: int) -> float | None:
    """Median tokens/s of the last recorded steps that `world_size` ranks took; None without such steps."""
    speeds = [
        record["tokens_per_second"]
        for record in read_last(path)
        if "tokens_per_second" in record
        and round(record["tokens_per_second"] / record["tokens_per_second_per_gpu"]) == world_size
    ]
    return statistics.median(speeds[-LAST_STEPS:]) if speeds else None
