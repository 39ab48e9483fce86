"""docs/config.md equals the docstrings."""

from pathlib import Path

from fmscale.config.reader.reference import reference


def test_the_page_of_all_keys_is_up_to_date() -> None:
    page = (Path(__file__).parents[3] / "docs" / "config.md").read_text()
    assert page == reference(), "run `python -m fmscale.config.reader.reference > docs/config.md`"
    for key in ("## `data.sources[]`", "| `zero_stage` | `Literal[", "## `model.rope_scaling`"):
        assert key in page
