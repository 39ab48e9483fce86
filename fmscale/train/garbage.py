"""Python's garbage collector, at the same steps on all ranks: the pause of one rank would be a pause of every rank."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 50
"""Steps between two collections, as in torchtitan."""


@contextmanager
def collected_together() -> Iterator[Callable[[int], None]]:
    """Stop the collector's own schedule, and leave all objects from before out of collections; yields a function that
    collects if it is time to, after a number of steps.
    """
    was_on = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield lambda step: None if step % EVERY else _collect()
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def _collect() -> None:
    gc.collect()
