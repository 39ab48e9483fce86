"""Repeats of failed requests, with jitter, until a deadline; then an error with the attempts.

Full jitter after "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): each wait is uniform between
zero and a doubling bound, so that many ranks that failed together do not return together.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fmscale.errors import FmscaleError, StoreUnavailable
from fmscale.store.backends.http_errors import Answer

T = TypeVar("T")

FIRST_WAIT = 0.1
"""Bound of the first wait in seconds."""
LONGEST_WAIT = 3.0
"""Bound of every later wait in seconds: the end of an outage is noticed within 3 s."""
FIRST_CONTACT = 10.0
"""Seconds for an endpoint that never answered: a mistyped host should not cost a minute."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Time limits of repeated requests."""

    deadline: float
    """Seconds from the first attempt to the error."""
    stall: float
    """Seconds after which an attempt without progress is cut; no attempt starts later than deadline - stall."""


@dataclass(kw_only=True)
class Attempts:
    """Attempts of one operation so far; `maybe_done` makes a later "exists already" ambiguous."""

    count: int = 0
    maybe_done: bool = False
    last: str = ""


def retried(
    attempt: Callable[[Attempts], T],
    understand: Callable[[Exception], Answer],
    policy: RetryPolicy,
    *,
    what: str,
    url: str,
    contacted: Callable[[], bool] = lambda: True,
) -> T:
    """Call `attempt` until it returns.

    `understand` tells errors to raise at once from errors to retry. Raises StoreUnavailable with `what`, the
    number of attempts and the last answer when the deadline leaves no time for another attempt.
    """
    begin = time.monotonic()
    attempts = Attempts()
    while True:
        attempts.count += 1
        try:
            return attempt(attempts)
        except FmscaleError:
            raise
        except Exception as error:
            answer = understand(error)
            if answer.error is not None:
                raise answer.error from error
            attempts.maybe_done |= answer.maybe_done
            attempts.last = answer.summary
            reached = answer.connected or contacted()
            elapsed = time.monotonic() - begin
            wait = random.uniform(0.0, min(LONGEST_WAIT, FIRST_WAIT * 2**attempts.count))
            limit = policy.deadline if reached else min(policy.deadline, FIRST_CONTACT + policy.stall)
            if elapsed + wait + policy.stall > limit:
                raise unavailable(what, url, attempts, elapsed) from error
        time.sleep(wait)


def unavailable(what: str, url: str, attempts: Attempts, elapsed: float) -> StoreUnavailable:
    """The error after the last attempt."""
    return StoreUnavailable(
        f"the store did not complete {what}",
        found=f"{attempts.last} from {url} (attempts: {attempts.count}, in {elapsed:.1f} s)",
        remedy="Check the endpoint, the network and the store's load; nothing half-written is visible.",
    )
