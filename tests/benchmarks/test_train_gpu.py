"""T3 fits into its time and its disk; and its figures from a run's records."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.train_gpu import (
    CONFIG,
    EVERY,
    OVERHEAD_SECONDS,
    ROWS,
    STEPS,
    TARGET,
    TIMEOUT,
    WARMUP,
    disk_bytes,
    overrides,
    summary,
)
from fmscale.config import derive_batch, load_config


def test_it_ends_in_its_time_at_half_the_target_and_on_a_disk_of_40_gb() -> None:
    config = load_config(CONFIG, overrides(Path("somewhere")))
    batch = derive_batch(config.batch, 1)
    assert (batch.global_batch, config.train.steps, config.checkpoint.every) == (ROWS, STEPS, EVERY)
    tokens = STEPS * batch.global_batch * config.data.sequence_length
    assert tokens / (TARGET / 2) + OVERHEAD_SECONDS < TIMEOUT < 600
    assert WARMUP < EVERY - 1
    assert (config.checkpoint.keep_last, config.checkpoint.grace_seconds) == (1, 0)
    assert 30e9 < disk_bytes(config) < 40e9


def record(step: int, seconds: float, blocking: float = 0.0) -> dict[str, Any]:
    return {
        "step": step,
        "seconds": seconds,
        "tokens": ROWS * 2048,
        "tokens_per_second": ROWS * 2048 / seconds,
        "data_stall": 0.001 * seconds,
        "ckpt_blocking": blocking,
    }


def test_a_save_costs_what_its_step_waits_and_what_the_steps_beside_it_lose() -> None:
    steps = [record(step, 40.0 if step == 1 else 1.25) for step in range(1, STEPS + 1)]
    steps[EVERY] = record(EVERY + 1, 4.25, blocking=3.0)
    steps[EVERY + 1] = record(EVERY + 2, 1.75)
    steps[2 * EVERY] = record(2 * EVERY + 1, 1.5, blocking=0.25)
    found = summary(steps, load_config(CONFIG))
    assert found["save_seconds"] == pytest.approx([3.5, 0.25])
    assert found["save_blocking"] == pytest.approx([3.0, 0.25])
    seconds = 50 * 1.25 + 3.75
    assert found["tokens_per_second"] == pytest.approx(50 * ROWS * 2048 / seconds)
    assert found["data_stall"] == pytest.approx(0.001)
    assert found["save_share"] == pytest.approx(3.5 * found["tokens_per_second"] / (100 * 256 * 2048))
    assert len(found["runs"]) == STEPS - WARMUP
