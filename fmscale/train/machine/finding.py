"""A line of the doctor's examination of a machine."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    """The thing, such as "open files"."""
    status: Status
    """ok; warn: some runs will be slow or fail; fail: no run works that needs it; skip: not examined here."""
    found: str
    """Observation; for `skip` the reason."""
    remedy: str = ""
    """Sentence that says what to do; empty for ok."""
