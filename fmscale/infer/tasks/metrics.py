"""Numbers of a task: shares with Wilson's interval, perplexities, pass@k."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number over documents."""

    name: str
    value: float
    n: int
    low: float | None = None
    """Lower end of the 95 % interval; None for a metric that is no share."""
    high: float | None = None
    """Upper end."""
    hits: int | None = None
    """Documents that count as right."""


def share(name: str, right: Sequence[bool]) -> Metric:
    """Share of documents that are right, with Wilson's interval (1927)."""
    hits, n = sum(right), len(right)
    low, high = wilson(hits, n)
    return Metric(name=name, value=hits / n if n else math.nan, n=n, low=low, high=high, hits=hits)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share; (0, 1) without observations."""
    if not n:
        return 0.0, 1.0
    p, z2 = hits / n, _Z * _Z
    middle, half = p + z2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))


def choose(nats: Sequence[float], choices: Sequence[str]) -> dict[str, int]:
    """The choice by each accuracy's rule: all nats; nats a character; nats a UTF-8 byte. Of equals the first."""
    sizes = {
        "acc": [1.0] * len(choices),
        "acc_norm": [float(len(choice)) for choice in choices],
        "acc_bytes": [float(len(choice.encode())) for choice in choices],
    }
    return {name: int(np.argmax(np.array(nats) / np.array(size))) for name, size in sizes.items()}


def perplexities(nats: Sequence[float], texts: Sequence[str]) -> list[Metric]:
    """Perplexity a word and a byte, and bits per byte, over all texts; words are what white space parts."""
    total, n = math.fsum(nats), len(texts)
    words = sum(len(re.split(r"\s+", text)) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    values = {
        "word_perplexity": math.exp(min(-total / words, 700.0)),
        "byte_perplexity": math.exp(min(-total / size, 700.0)) if size else math.nan,
        "bits_per_byte": -total / size / math.log(2) if size else math.nan,
    }
    return [Metric(name=name, value=value, n=n) for name, value in values.items()]


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that one of k of n replies is right, unbiased: 1 - C(n - c, k) / C(n, k) (arXiv 2107.03374)."""
    return 1.0 - math.prod((n - right - i) / (n - i) for i in range(k)) if n - right >= k else 1.0
