"""The batch: two of three numbers are given, the third follows from the number of data-parallel ranks."""

from dataclasses import dataclass
from typing import Literal

from fmscale.config.checks import at_least
from fmscale.errors import ConfigError

EQUATION = "global_batch = micro_batch x accumulation x dp_size"


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Two of global_batch, micro_batch and accumulation; `derive_batch` finds the third."""

    global_batch: int | None = None
    """Rows of one optimizer step, over all ranks."""
    micro_batch: int | None = None
    """Rows of one forward on one rank."""
    accumulation: int | None = None
    """Forwards of one rank in one optimizer step."""
    uneven: Literal["refuse", "fill"] = "refuse"
    """A global batch that the ranks cannot share evenly is refused; `fill` completes the last forwards with
    rows of weight zero, so that a run can go on at any number of ranks with the same global batch."""

    def __post_init__(self) -> None:
        at_least("global_batch", self.global_batch, 1)
        at_least("micro_batch", self.micro_batch, 1)
        at_least("accumulation", self.accumulation, 1)


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The three numbers, solved."""

    global_batch: int
    """Rows of one optimizer step, over all ranks."""
    micro_batch: int
    """Rows of one forward on one rank."""
    accumulation: int
    """Forwards of one rank in one optimizer step, the same on every rank."""
    dp_size: int
    """Data-parallel ranks."""

    @property
    def padding(self) -> int:
        """Rows of weight zero in a step, over all ranks."""
        return self.micro_batch * self.accumulation * self.dp_size - self.global_batch


def derive_batch(config: BatchConfig, dp_size: int, *, place: str = "batch") -> BatchShape:
    """Solve global_batch = micro_batch x accumulation x dp_size for the number that is not given.

    With `uneven: fill` it rounds up to whole rows and forwards. Raises ConfigError with the equation and
    the nearest values that would do; `place` is where the config's batch section stands.
    """
    total, micro, steps = config.global_batch, config.micro_batch, config.accumulation
    given = {
        name: value
        for name, value in (("global_batch", total), ("micro_batch", micro), ("accumulation", steps))
        if value is not None
    }
    if len(given) < 2:
        raise ConfigError(
            f"{place}: two of global_batch, micro_batch and accumulation are needed ({EQUATION})",
            found=given,
            remedy="Give another one.",
        )
    if total is None:
        assert micro
        assert steps
        return BatchShape(global_batch=micro * steps * dp_size, micro_batch=micro, accumulation=steps, dp_size=dp_size)
    fill = config.uneven == "fill"
    if micro is not None and steps is not None:
        capacity = micro * steps * dp_size
        if total == capacity or (fill and capacity - micro * dp_size < total <= capacity):
            return BatchShape(global_batch=total, micro_batch=micro, accumulation=steps, dp_size=dp_size)
        raise ConfigError(
            f"{place}: the batch does not come out: {EQUATION}, "
            f"but {total} is not {micro} x {steps} x {dp_size} = {capacity}",
            found=given,
            remedy=f"Remove one of the three, or take global_batch: {capacity}.",
        )
    known = micro if micro is not None else steps
    assert known
    if total % (known * dp_size) and not fill:
        raise _uneven(place, total, known, dp_size, solve="accumulation" if micro else "micro_batch")
    other = -(-total // (known * dp_size))
    if micro is not None:
        return BatchShape(global_batch=total, micro_batch=micro, accumulation=other, dp_size=dp_size)
    return BatchShape(global_batch=total, micro_batch=other, accumulation=known, dp_size=dp_size)


def _uneven(place: str, total: int, known: int, dp_size: int, *, solve: str) -> ConfigError:
    """The error for a batch without a whole solution: what was solved and which numbers nearby have one."""
    if solve == "accumulation":
        given, equation = "micro_batch", f"{total} = {known} x accumulation x {dp_size}"
    else:
        given, equation = "accumulation", f"{total} = micro_batch x {known} x {dp_size}"
    part = known * dp_size
    ways = [f"global_batch: {value}" for value in (total // part * part, -(-total // part) * part) if value]
    if total % dp_size == 0:
        share = total // dp_size
        divisors = [divisor for divisor in range(1, share + 1) if share % divisor == 0]
        below = max((divisor for divisor in divisors if divisor < known), default=None)
        above = min((divisor for divisor in divisors if divisor > known), default=None)
        ways += [f"{given}: {value}" for value in (below, above) if value]
    return ConfigError(
        f"{place}: the batch does not come out: {EQUATION}, here {equation}, so {solve} would be {total / part:.4g}",
        found={"global_batch": total, given: known, "dp_size": dp_size},
        remedy=f"Take {' or '.join(ways)}, or uneven: fill.",
    )
