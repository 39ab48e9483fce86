"""From a folder of pictures to a trained classifier by verbs and YAML, with classes of an installed package."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.data.plan.order_log import replay
from fmscale.data.views.placement import open_placement
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.open import open_store
from fmscale.store.segments.records import open_record_segment, read_records
from tests.helpers.pictures import installed_pictures, paint, picture, png
from tests.helpers.ranks import run_ranks
from tests.train.runs import steps_of, train_here

COUNT, STEPS = 160, 8
CONFIG = """
store: {{url: {folder}/store}}
data:
  memory_bytes: 8_388_608
  sources: [{{dataset: photos}}]
  spec: {{kind: "pictures.spec:Crops", classes: [stripes, tiles, waves], patch: 4, side_most: 48, bytes_most: 20_000}}
model: {{kind: "pictures.model:Classifier", classes: 3, patch: 4, width: 32}}
objective: {{kind: "pictures.objective:Classify"}}
batch: {{global_batch: 32, forward_tokens: 512}}
train: {{run: alone, folder: {folder}, steps: 8, log_every: 1, precision: fp32, record_delivery: false}}
schedule: {{kind: constant, warmup_steps: 0}}
optimizer: {{lr: 0.005}}
checkpoint: {{every: 4}}
"""
BAD = {
    # name: who names it, reason
    "tiles/nothing.png": ("ingest", "empty"),
    "tiles/page.png": ("derive", "no picture that can be read"),
    "waves/large.png": ("derive", "the file is too large"),
    "waves/start.png": ("derive", "its header is cut off"),
    "stripes/short.png": ("run", "its end is cut off"),
    "tiles/flipped.png": ("run", "a chunk does not match its checksum"),
    "waves/half.png": ("run", "the picture is damaged"),
}


def write_pictures(folder: Path) -> None:
    """Pictures in a folder a class, some of them damaged."""
    for number in range(COUNT):
        kind, data = picture(number)
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / f"{number:03d}.png").write_bytes(data)
    whole = png(paint("waves", 24, 30, 0), filters=(1, 2))
    content = {
        "nothing": b"",
        "page": b"<html>not found</html>",
        "large": whole + bytes(20_000),
        "start": whole[:20],
        "short": whole[:-15],
        "flipped": whole[:200] + bytes([whole[200] ^ 4]) + whole[201:],
        "half": whole[: len(whole) // 2],
    }
    for name in BAD:
        (folder / name).write_bytes(content[Path(name).stem])


def verb(*words: str) -> str:
    """The output of a verb that must succeed."""
    result = CliRunner().invoke(build_app(), list(words))
    assert result.exit_code == 0, result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the installed package, a config, and a store with the pictures and their sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    with installed_pictures(folder) as package, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", package)  # for the processes that verbs start
        write_pictures(folder / "photos")
        config = folder / "train.yaml"
        config.write_text(CONFIG.format(folder=folder))
        dataset = f"{folder}/store/photos"
        said = verb("ingest", str(folder / "photos"), "--as", "records", "--dataset", dataset)
        said += verb("dataset", "derive", dataset, "--column", "size", "--config", str(config))
        for name, (by, reason) in BAD.items():
            if by != "run":
                assert name in said
                assert reason in said
        verb("plan", str(config))
        yield folder


def train_installed(rank: int, size: int, package: str, path: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """`fmscale train` as this rank, where the package is installed."""
    sys.path.insert(0, package)
    try:
        return train_here(rank, size, path, overrides)
    finally:
        sys.path.remove(package)


def train(folder: Path, size: int, run: str, *overrides: str) -> list[dict[str, Any]]:
    """The records of the steps of a run."""
    words = (f"train.run={run}", *overrides)
    run_ranks(train_installed, size, str(folder / "installed"), str(folder / "train.yaml"), words, timeout=120)
    return list(steps_of(folder / run).values())


def quarantined(folder: Path, run: str) -> dict[str, str]:
    """Names of the pictures that the order log of a run has taken away, and the reasons."""
    store = open_store(str(folder / "store"))
    plan = replay(Log(store, f"runs/{run}", RUN_KINDS))
    assert plan is not None
    dataset = open_dataset(store, "photos")
    manifest = open_placement(dataset, plan.sources[0].view).manifest(0)
    names: list[str] = []
    for segment in range(manifest.segments):
        row = manifest.row(segment)
        table = read_records(store, open_record_segment(store, row.prefix, row.seal), 0, row.documents)
        names += table.column("name").to_pylist()
    rows = ((row, ban.reason) for ban in plan.bans for first, stop in ban.rows for row in range(first, stop))
    return {names[row]: reason for row, reason in rows}


@pytest.mark.slow
def test_any_ranks_and_stages_have_the_same_losses_and_all_damage_is_named(folder: Path) -> None:
    program = str(Path(sys.executable).with_name("fmscale"))
    subprocess.run([program, "train", str(folder / "train.yaml")], check=True, capture_output=True, timeout=120)
    alone = list(steps_of(folder / "alone").values())
    three = train(folder, 3, "three", "train.zero_stage=3")
    partly = train(folder, 3, "partly", "train.zero_stage=0", "train.steps=4")
    resumed = train(folder, 1, "partly", "train.zero_stage=3")
    assert len(partly) == 4
    assert [step["step"] for step in alone] == list(range(1, STEPS + 1))
    for other in (three, resumed):
        assert [step["images"] for step in other] == [step["images"] for step in alone]
        for name in ("loss", "metric/accuracy"):
            assert [step[name] for step in other] == pytest.approx([step[name] for step in alone], rel=1e-5)
    assert alone[-1]["loss"] < 0.7 * alone[0]["loss"]
    assert alone[-1]["metric/accuracy"] > 0.6
    late = {name: reason for name, (by, reason) in BAD.items() if by == "run"}
    for run in ("alone", "three", "partly"):
        found = quarantined(folder, run)
        assert {name.rpartition("photos/")[2] for name in found} == set(late)
        for name, reason in found.items():
            assert late[name.rpartition("photos/")[2]] in reason
            assert name in reason
    # A picture that is met again before its entry takes effect has no content again.
    assert len(late) <= STEPS * 32 - sum(step["images"] for step in alone) <= 2 * len(late)
