"""The batch equation: every pair of given numbers, and errors whose remedies work."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.config import BatchConfig, derive_batch
from fmscale.errors import ConfigError

NUMBERS = ("global_batch", "micro_batch", "accumulation")


@settings(deadline=None)
@given(micro=st.integers(1, 64), steps=st.integers(1, 64), dp_size=st.integers(1, 64))
def test_any_two_give_the_third(micro: int, steps: int, dp_size: int) -> None:
    numbers: dict[str, Any] = dict(zip(NUMBERS, (micro * steps * dp_size, micro, steps), strict=True))
    for left_out in (*NUMBERS, None):
        batch = derive_batch(
            BatchConfig(**{name: value for name, value in numbers.items() if name != left_out}), dp_size
        )
        assert [getattr(batch, name) for name in NUMBERS] == list(numbers.values())
        assert batch.padding == 0


@pytest.mark.parametrize("given_numbers", [{}, {"global_batch": 8}, {"micro_batch": 8}])
def test_one_number_is_not_enough(given_numbers: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="two of global_batch, micro_batch and accumulation") as caught:
        derive_batch(BatchConfig(**given_numbers), 2, place="run.yaml:9: batch")
    assert caught.value.cause.startswith("run.yaml:9: batch: ")
    assert caught.value.found == given_numbers


@pytest.mark.parametrize(
    ("given_numbers", "dp_size", "cause", "remedy"),
    [
        (
            {"global_batch": 100, "micro_batch": 8},
            4,
            "global_batch = micro_batch x accumulation x dp_size, here 100 = 8 x accumulation x 4, "
            "so accumulation would be 3.125",
            "Take global_batch: 96 or global_batch: 128 or micro_batch: 5 or micro_batch: 25, or uneven: fill.",
        ),
        (
            {"global_batch": 6, "accumulation": 4},
            4,
            "here 6 = micro_batch x 4 x 4, so micro_batch would be 0.375",
            "Take global_batch: 16, or uneven: fill.",
        ),
        (
            {"global_batch": 64, "micro_batch": 4, "accumulation": 3},
            4,
            "but 64 is not 4 x 3 x 4 = 48",
            "Remove one of the three, or take global_batch: 48.",
        ),
    ],
)
def test_what_does_not_come_out_prints_the_equation(
    given_numbers: dict[str, Any], dp_size: int, cause: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        derive_batch(BatchConfig(**given_numbers), dp_size)
    assert cause in caught.value.cause
    assert caught.value.remedy == remedy


@settings(deadline=None)
@given(
    total=st.integers(1, 5000),
    known=st.integers(1, 40),
    dp_size=st.integers(1, 40),
    name=st.sampled_from(["micro_batch", "accumulation"]),
)
def test_every_value_that_an_error_advises_comes_out(total: int, known: int, dp_size: int, name: str) -> None:
    numbers: dict[str, Any] = {"global_batch": total, name: known}
    try:
        derive_batch(BatchConfig(**numbers), dp_size)
    except ConfigError as error:
        advised = re.findall(r"(\w+): (\d+)", error.remedy)
        assert advised
        for key, value in advised:
            assert derive_batch(BatchConfig(**{**numbers, key: int(value)}), dp_size).padding == 0
    filled = derive_batch(BatchConfig(**numbers, uneven="fill"), dp_size)
    assert filled.global_batch == total
    assert getattr(filled, name) == known
    smaller = filled.accumulation - 1 if name == "micro_batch" else filled.micro_batch - 1
    assert filled.padding >= 0
    assert smaller * known * dp_size < total


def test_all_three_with_fill_need_the_fewest_forwards() -> None:
    def padding(total: int) -> int:
        config = BatchConfig(global_batch=total, micro_batch=4, accumulation=3, uneven="fill")
        return derive_batch(config, 4).padding

    assert [padding(total) for total in (33, 45, 48)] == [15, 3, 0]
    for total in (32, 49):
        with pytest.raises(ConfigError, match="does not come out"):
            padding(total)
