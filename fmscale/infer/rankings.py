"""A reward model on rendered pairs and rankings: the order of its scores against the order of the records."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fmscale.errors import DataError
from fmscale.infer.score import document_values, scores
from fmscale.infer.value_columns import read_samples, rendered_commits
from fmscale.models import Decoder
from fmscale.store.backends.protocol import Backend


@dataclass(frozen=True, kw_only=True)
class RankingScores:
    """Agreement of scores with rankings, best first."""

    rankings: int
    pairs: int
    """Pairs of texts of one ranking."""
    accuracy: float
    """Share of a ranking's pairs whose scores are in its order, mean over rankings; equal scores are not in order."""
    best: float
    """Share of the rankings whose first text has the highest score."""
    margin: float
    """Mean difference of the scores of the first and the last text."""
    score: float
    """Mean score."""
    bad: int
    """Records that cannot be read."""


def score_rankings(
    model: Decoder,
    backend: Backend,
    dataset: str,
    split: str,
    *,
    tokenizer: str | None = None,
    limit: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> RankingScores:
    """Score the pairs or rankings of a split, at most `limit`, in stored order. Raises DataError for records of a
    single text, ConfigError for a model without a score or another tokenizer.
    """
    commits = rendered_commits(backend, dataset, split, tokenizer)
    rows = [row for commit in commits for row in commit.manifests[split].rows()]
    total = min(sum(row.documents for row in rows), limit or 2**63)
    found: list[np.ndarray] = []
    bad = 0
    for row in rows:
        for _, samples in read_samples(backend, row):
            kept = samples[: total - len(found) - bad]
            for values in document_values(model, kept, scores, threads=threads):
                if len(values) > 1:
                    found.append(values.astype(np.float64))
                elif len(values):
                    raise DataError(
                        f"dataset {dataset} has records of a single text, and scores are compared within a record",
                        found=f"record {len(found) + bad} of split {split}",
                        remedy="Name a rendered dataset of pairs or rankings.",
                    )
                else:
                    bad += 1
            progress(len(found) + bad, total)
    if not found:
        raise DataError(f"No ranking of dataset {dataset} can be read", found=f"{bad} bad", remedy="Render it again.")
    right = [values[:, None] > values[None, :] for values in found]
    upper = [np.triu_indices(len(values), 1) for values in found]
    return RankingScores(
        rankings=len(found),
        pairs=sum(len(each[0]) for each in upper),
        accuracy=float(np.mean([each[place].mean() for each, place in zip(right, upper, strict=True)])),
        best=float(np.mean([each[0, 1:].all() for each in right])),
        margin=float(np.mean([values[0] - values[-1] for values in found])),
        score=float(np.mean(np.concatenate(found))),
        bad=bad,
    )
