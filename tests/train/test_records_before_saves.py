"""Records of all that a durable checkpoint covers are on disk: a resume does not repeat these steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmscale.checkpoint.saver import Saver
from fmscale.config import load_config
from fmscale.data.provenance.delivery import read_records
from tests.helpers.deepspeed_numbers import restart_numbers
from tests.helpers.ranks import run_ranks
from tests.train.runs import events_of, make_corpus, steps_of, write_config


def recorded_at_saves(
    rank: int, size: int, path: str, overrides: tuple[str, ...]
) -> list[tuple[int, list[int], int, int]]:
    """(step of the save, recorded steps, own samples, step of the last evaluation) as each save begins."""
    import pytest

    from fmscale.train.run import run_training

    restart_numbers()
    config, found = load_config(path, overrides), []
    folder = Path(config.train.folder) / config.train.run
    right = Saver.save

    def save(saver: Saver, step: int, *args: Any, **more: Any) -> None:
        samples = len(read_records(sorted((folder / "delivery").glob(f"*rank{rank:05d}.arrow"))))
        evaluated = max((event["step"] for event in events_of(folder, "evaluation")), default=0)
        found.append((step, sorted(steps_of(folder)), samples, evaluated))
        right(saver, step, *args, **more)

    def show(record: Mapping[str, Any]) -> None:
        assert record["steps"] == 8

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saver, "save", save)
        run_training(config, show=show, event=lambda record: None)
    return found


def test_records_of_a_save_are_on_disk_before_it_begins(tmp_path: Path) -> None:
    path = write_config(tmp_path, make_corpus(tmp_path))
    overrides = ("train.log_every=1000", "evaluation={every: 3, sets: [{dataset: prose, rows: 2}]}")
    found = run_ranks(recorded_at_saves, 2, str(path), overrides, timeout=120)[0]
    assert found == [(step, list(range(1, step + 1)), 3 * step, step) for step in (3, 6, 8)]
    steps = steps_of(tmp_path / "run")
    assert all(steps[step]["ckpt_blocking"] > 0 for step in (4, 7)), "the next step counts the time of a save"
