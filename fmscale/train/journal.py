"""Metrics of the steps: on their way from the device until they are logged, then reduced over ranks together."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fmscale.runtime.axes import Axis
from fmscale.runtime.collectives import total
from fmscale.runtime.sinks.protocol import Ending
from fmscale.runtime.sinks.run_sinks import RunSinks
from fmscale.text import clean
from fmscale.train.step import StepResult


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Time of a rank in a step by its use, in seconds."""

    step: float
    """The whole step, data and checkpoint included."""
    data_stall: float
    """Time that the step waited for data."""
    ckpt_blocking: float
    """Time that training waited for a save: at its beginning and at the fence."""


class Journal:
    """Collects steps and writes a record of each at every flush; all ranks flush together, rank 0 writes."""

    def __init__(
        self,
        sinks: RunSinks,
        sources: Sequence[str],
        *,
        unit: str,
        dp: Axis,
        reads: Callable[[], Mapping[str, int]] = dict,
        flops_per_token: float | None,
        peak_flops: float | None,
        world_size: int,
    ) -> None:
        """`unit` is the objective's. For tokens `flops_per_token` and `peak_flops` (of a device) give `mfu`; None if
        unknown. `reads`: counts of this rank's reads so far, by the same names on every rank.
        """
        self.sinks = sinks
        self._reads = reads
        self._outcome: Ending = "failed"
        self._sources = list(sources)
        self._unit = unit
        self._dp = dp
        self.flops_per_token = flops_per_token
        self.peak = peak_flops if unit == "tokens" else None
        self._world_size = world_size
        self._pending: list[tuple[int, float, StepResult, Timing, float]] = []
        self._sums: list[torch.Tensor] = []
        self._copied: torch.cuda.Event | None = None
        self._due: Callable[[Mapping[str, Any]], None] | None = None

    def add(self, step: int, rate: float, result: StepResult, timing: Timing) -> None:
        """Remember a step that has just ended, without a synchronisation with the device: the copy of its sums is
        queued now, as a later copy would wait for the next backward.
        """
        sums = _sums_of(result, sorted(result.metrics))
        self._sums.append(sums.to("cpu", non_blocking=True))
        if sums.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._pending.append((step, rate, result, timing, time.time()))

    def flush_later(self, show: Callable[[Mapping[str, Any]], None]) -> None:
        """Have `flush_due` write the steps until now."""
        self._due = show

    def flush_due(self) -> None:
        """Write the steps that are to be written, on all ranks: called where the host has time, after a backward."""
        if self._due:
            self.flush()

    def flush(self, show: Callable[[Mapping[str, Any]], None] | None = None) -> list[dict[str, Any]]:
        """Write the pending steps; returns their records. `show`, or else that of `flush_later`, gets the last record,
        on every rank.
        """
        show, self._due = show or self._due, None
        if not self._pending:
            return []
        steps = [entry[0] for entry in self._pending]
        results = [entry[2] for entry in self._pending]
        names = sorted(results[0].metrics)
        own = torch.tensor([[t.step, t.data_stall, t.ckpt_blocking] for t in (entry[3] for entry in self._pending)])
        # The times of each rank travel in the sum of the losses: a slot a rank, which the others leave at 0.
        ranks = torch.zeros((self._dp.size, *own.shape), dtype=torch.float64)
        ranks[self._dp.rank] = own
        if self._copied is not None:
            self._copied.synchronize()
        sums = torch.stack(self._sums).double()
        self._sums.clear()
        both = total(torch.cat((sums.view(-1), ranks.view(-1))), self._dp)
        sums, ranks = both[: sums.numel()].view(sums.shape), both[sums.numel() :].view(ranks.shape)
        slowest = ranks.amax(0)  # a step is as slow as its slowest rank
        records = []
        for i, (step, rate, result, _, ended) in enumerate(self._pending):
            spent = dict(zip(("seconds", "data_stall", "ckpt_blocking"), slowest[i].tolist(), strict=True))
            count, unit = result.count, self._unit
            means = [value / count if count else math.nan for value in sums[i, : 1 + len(names)].tolist()]
            record: dict[str, Any] = {
                "time": ended,
                "step": step + 1,
                "loss": means[0],
                unit: count if count % 1 else int(count),
                "lr": rate,
                "grad_norm": result.update.grad_norm,
                "applied": result.update.applied,
                **spent,
                f"{unit}_per_second": count / spent["seconds"],
                f"{unit}_per_second_per_gpu": count / spent["seconds"] / self._world_size,
                **{f"metric/{name}": mean for name, mean in zip(names, means[1:], strict=True)},
            }
            if self.peak and self.flops_per_token:
                record["mfu"] = self.flops_per_token * record["tokens_per_second_per_gpu"] / self.peak
            if len(self._sources) > 1:
                losses, weights = sums[i, 1 + len(names) :].view(2, -1).tolist()
                for name, loss, weight in zip(self._sources, losses, weights, strict=True):
                    if weight:
                        record[f"loss/{name}"] = loss / weight
            records.append(record)
        assert steps == sorted(steps), steps
        self._pending.clear()
        for record in records:
            self.sinks.put("step", record)
        if self._dp.size > 1:
            seconds, stalls = ([float(f"{value:.3g}") for value in column] for column in ranks.mean(1).T[:2].tolist())
            self.event(event="ranks", step=steps[-1] + 1, seconds=seconds, data_stall=stalls)
        if show:
            show(records[-1])
        return records

    def event(self, **record: Any) -> None:
        """Write a record of an event other than a step: a checkpoint, an evaluation, a resume."""
        self.sinks.put("event", {"time": time.time(), **record})

    def end(self, step: int, outcome: Ending) -> None:
        """Write the counts of all ranks' reads, on all ranks together, and keep the outcome for `close`."""
        counts = self._reads()
        sums = total(torch.tensor(list(counts.values())), self._dp).tolist()
        self.event(event="reads", step=step, outcome=outcome, **dict(zip(counts, map(int, sums), strict=True)))
        self._outcome = outcome

    def close(self, error: type[BaseException] | None, value: BaseException | None, *_: object) -> None:
        """Close the sinks, as an ExitStack calls it; a failure is on record, as this rank saw it."""
        if error:
            self.event(event="failed", type=error.__name__, cause=clean(str(value)))
        self.sinks.close("failed" if error else self._outcome)


def _sums_of(result: StepResult, names: Sequence[str]) -> torch.Tensor:
    """A step's sums on this rank: the loss, the metrics, then losses and weights by source."""
    scalars = [result.loss_sum, *(result.metrics[name] for name in names)]
    return torch.cat((*(scalar.float().view(1) for scalar in scalars), result.loss_by_source.reshape(-1)))
