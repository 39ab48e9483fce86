"""Writers of a log that are killed at random moments, two at a time, on a directory and on a real S3 server."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.campaign.outcome import Outcome, tried
from tests.helpers.s3_server import S3Server
from tests.store.log.test_log_kills import campaign

TOGETHER = 20
"""Kills at most before the log is judged as a whole."""


def log_kills(folder: Path, target: int, seed: int) -> Iterator[Outcome]:
    """Each acknowledged entry is there once, at its number, and the log takes more."""
    with S3Server() as server:
        os.environ.update(server.environment)
        places = ((str(folder / "store"), 0.002), (server.url(server.new_bucket(), "store"), 0.01))
        for place, (url, reach) in enumerate(places):
            left = target // 2
            while left > 0:
                kills = min(TOGETHER, left)
                left -= kills
                acts = partial(campaign, url, kills, seed + left, reach)
                yield tried(acts, kills, "lost", f"{('directory', 'S3')[place]}, seed {seed + left}")
