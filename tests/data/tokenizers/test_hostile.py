"""A tokenizer.json whose pattern takes exponential time, or whose JSON is too deep, is an error with a remedy."""

import json

import pytest

from fmscale.data.tokenizers.tokenizer import from_json
from fmscale.errors import ConfigError


def splitting(pattern: str) -> bytes:
    """A BPE of two letters that splits by a pattern."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    return json.dumps({"pre_tokenizer": split, "model": model}).encode()


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$"])
def test_a_pattern_that_tries_too_many_ways_is_named(pattern: str) -> None:
    tokenizer = from_json(splitting(pattern))
    assert tokenizer.encode_batch(["aab"])[0].tolist() == [0, 0, 1]
    with pytest.raises(ConfigError, match=r"cannot split this text: found .*retry-limit.*begins 'aaaa") as caught:
        tokenizer.encode_batch(["aab", "a" * 60 + "b"])
    assert "nested repetitions" in caught.value.remedy


@pytest.mark.parametrize("bomb", [b"[" * 100_000, b'{"a":' * 100_000])
def test_json_that_is_too_deep_is_refused(bomb: bytes) -> None:
    with pytest.raises(ConfigError, match=r"my.json is not JSON: found .*recursion"):
        from_json(bomb, "my.json")
