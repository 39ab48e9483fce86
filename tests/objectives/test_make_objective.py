"""The objective of a config: ours, or that of a class of the user's own."""

import pytest

from fmscale import config
from fmscale.errors import ConfigError
from fmscale.objectives import NextToken, make_objective
from tests.helpers.own import Nothing, Weights


def test_the_section_decides_which_objective_is_computed() -> None:
    assert isinstance(make_objective(config.NextTokenConfig()), NextToken)
    own = Weights(scale=2.0)
    assert make_objective(own) is own
    with pytest.raises(ConfigError, match="lacks the method collate") as caught:
        make_objective(Nothing())
    assert caught.value.found == "tests.helpers.own.Nothing"
    assert "__call__" in caught.value.remedy
