"""The learning rate is a function of the step alone, with the paper's corners."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fmscale.config.train import ScheduleConfig
from fmscale.train.schedule import learning_rate


def rates(steps: int, **settings: object) -> list[float]:
    config = ScheduleConfig(**settings)  # type: ignore[arg-type]
    return [learning_rate(config, 1.0, step, steps) for step in range(steps)]


def test_wsd_warms_up_stays_and_decays_to_the_end() -> None:
    got = rates(100, kind="wsd", warmup_steps=9, decay_fraction=0.2, final_fraction=0.1)
    assert got[0] == pytest.approx(0.1)
    assert got[8] == pytest.approx(0.9)
    assert got[9:80] == [1.0] * 71
    assert got[80] == pytest.approx(1 - 0.9 / 20)
    assert got[99] == pytest.approx(0.1)


def test_cosine_is_at_the_middle_half_way() -> None:
    got = rates(101, kind="cosine", warmup_steps=0, final_fraction=0.0)
    assert got[0] == 1.0
    assert got[50] == pytest.approx(0.5, abs=0.02)
    assert got[100] == pytest.approx(0.0, abs=1e-3)


@example(kind="wsd", steps=2, warmup=0, decay=1.0, final=2e-208)
@given(
    kind=st.sampled_from(["wsd", "cosine", "constant"]),
    steps=st.integers(1, 200),
    warmup=st.integers(0, 300),
    decay=st.floats(0, 1),
    final=st.floats(0, 1),
)
def test_it_rises_then_falls_and_stays_within_bounds(
    kind: str, steps: int, warmup: int, decay: float, final: float
) -> None:
    got = rates(steps, kind=kind, warmup_steps=warmup, decay_fraction=decay, final_fraction=final)
    assert all(0 < rate <= 1 or (rate == 0 and final == 0) for rate in got)
    top = got.index(max(got))
    assert got[:top] == sorted(got[:top])
    assert got[top:] == sorted(got[top:], reverse=True)
