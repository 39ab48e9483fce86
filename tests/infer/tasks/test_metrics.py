"""Numbers of tasks against values that were computed elsewhere."""

import math

import pytest

from fmscale.infer.tasks.metrics import choose, pass_at_k, perplexities, share, wilson


def test_choices_are_picked_as_lm_eval_picks_them() -> None:
    # from lm-eval 0.4.13 with these log-likelihoods: acc .6667, acc_norm .3333, acc_bytes .6667
    documents = [
        ((-4.0, -9.0), ("Paris", "the city of London"), 0),
        ((-1.0, -6.0, -3.0), ("4", "vier or four", "5"), 1),
        ((-2.0, -2.5), ("é", "ab"), 0),
    ]
    picked = [(choose(nats, choices), gold) for nats, choices, gold in documents]
    right = {name: [found[name] == gold for found, gold in picked] for name in ("acc", "acc_norm", "acc_bytes")}
    assert picked[0][0] == {"acc": 0, "acc_norm": 1, "acc_bytes": 1}
    assert {name: sum(hits) for name, hits in right.items()} == {"acc": 2, "acc_norm": 1, "acc_bytes": 2}


def test_of_equal_choices_the_first_is_picked() -> None:
    assert choose((-1.0, -1.0), ("a", "b")) == {"acc": 0, "acc_norm": 0, "acc_bytes": 0}


def test_pass_at_k() -> None:
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(10, 3, 5) == pytest.approx(0.916667, abs=1e-6)
    assert (pass_at_k(10, 0, 5), pass_at_k(10, 10, 1), pass_at_k(10, 6, 5)) == (0.0, 1.0, 1.0)


def test_perplexities_of_words_and_bytes() -> None:
    # lm-eval: words are re.split(r"\s+", text), bytes are UTF-8
    found = {metric.name: metric.value for metric in perplexities([-10.0, -14.0], ["one two", "dé jà "])}
    assert found["word_perplexity"] == pytest.approx(math.exp(24 / 5))
    assert found["byte_perplexity"] == pytest.approx(math.exp(24 / 15))
    assert found["bits_per_byte"] == pytest.approx(24 / 15 / math.log(2))


def test_wilsons_interval() -> None:
    # 81 of 263: .255 to .366 (Newcombe, Statistics in Medicine 17, 1998, table I, method 3)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
    metric = share("acc", [True, False, True, True])
    assert (metric.value, metric.hits, metric.n) == (0.75, 3, 4)
