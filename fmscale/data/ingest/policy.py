"""The tokenizer of a job and the tokens around its documents: from the dataset, or from the user."""

from collections.abc import Sequence
from dataclasses import dataclass

from fmscale.data.tokenizers.protocol import Tokenizer
from fmscale.data.tokenizers.tokenizer import bpe_size, from_json, load_tokenizer
from fmscale.errors import ConfigError, DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets import tokenizers as stored
from fmscale.store.datasets.commit import Commit

DEFAULT_TOKENIZER = "bpe:8192"
"""Tokenizer of a new dataset: small enough for a laptop's models, trained in seconds."""


@dataclass(frozen=True, kw_only=True)
class IngestPolicy:
    """Decisions before a job's plan is made."""

    tokenizer: Tokenizer | None
    """The tokenizer, or None before its training."""
    name: str
    """Name of the tokenizer in the plan: its digest, or `bpe:N` before its training."""
    bos: bool
    """True if a BOS token stands before each document."""
    eos: bool
    """True if an EOS token stands after each document."""

    def ids(self, tokenizer: Tokenizer) -> tuple[int | None, int | None]:
        """Ids of BOS and EOS. Raises ConfigError for a token that the policy needs and the tokenizer lacks."""
        for needed, number, name in ((self.bos, tokenizer.bos_id, "bos"), (self.eos, tokenizer.eos_id, "eos")):
            if needed and number is None:
                raise ConfigError(
                    f"The tokenizer has no token that is known to be its {name.upper()}",
                    found=tokenizer.digest,
                    remedy=f"Use --no-{name}, or put the tokenizer_config.json that names it beside it.",
                )
        return tokenizer.bos_id if self.bos else None, tokenizer.eos_id if self.eos else None


def choose_records(commits: Sequence[Commit], shape: str) -> IngestPolicy:
    """The policy for records. Raises DataError if the dataset holds tokens, or records of another shape."""
    if commits and commits[-1].kind != "records":
        found, remedy = f"commit {commits[-1].number}", "Ingest records into a dataset of another name."
        raise DataError("The dataset holds tokens, not records", found=found, remedy=remedy)
    extra = commits[-1].body["extra"] if commits else {}
    has = "render" if "render" in extra else extra.get("ingest", {}).get("shape", "") or "records"
    if commits and has != (shape or "records"):
        raise DataError(
            f"The dataset holds records that were {'rendered' if has == 'render' else f'ingested with --as {has}'}",
            found=f"--as {shape or 'records'}",
            remedy="Take the dataset's own --as, or a dataset of another name.",
        )
    return IngestPolicy(tokenizer=None, name="", bos=False, eos=False)


def choose(
    backend: Backend, commits: Sequence[Commit], spec: str | None, bos: bool | None, eos: bool | None
) -> IngestPolicy:
    """The policy for a dataset with these live commits.

    Raises ConfigError for a missing tokenizer, DataError if a dataset with commits has another tokenizer, or another
    policy for BOS or EOS.
    """
    if commits:
        return _of_dataset(backend, commits, spec, bos, eos)
    spec = spec or DEFAULT_TOKENIZER
    tokenizer = None if bpe_size(spec) else load_tokenizer(spec)
    name = tokenizer.digest if tokenizer else spec
    policy = IngestPolicy(tokenizer=tokenizer, name=name, bos=bool(bos), eos=eos is not False)
    if tokenizer:
        policy.ids(tokenizer)
    return policy


def _of_dataset(
    backend: Backend, commits: Sequence[Commit], spec: str | None, bos: bool | None, eos: bool | None
) -> IngestPolicy:
    last = commits[-1]
    if last.tokenizer is None:
        raise DataError(
            "The dataset holds records, not tokens",
            found=f"commit {last.number} of kind {last.kind}",
            remedy="Use --as records, or ingest text into a dataset of another name.",
        )
    _check_spec(commits, last.tokenizer, spec)
    for name, choice, number in (("BOS", bos, last.bos), ("EOS", eos, last.eos)):
        if choice is not None and choice != (number is not None):
            raise DataError(
                f"The documents of the dataset have {'no ' if choice else 'a '}{name} token",
                found=f"--{'' if choice else 'no-'}{name.lower()}",
                remedy="Leave the option out, or ingest into a dataset of another name.",
            )
    tokenizer = from_json(stored.load_tokenizer(backend, last.tokenizer), f"tokenizer {last.tokenizer}")
    # A tokenizer.json alone may not name its BOS and EOS.
    tokenizer.bos_id, tokenizer.eos_id = last.bos, last.eos
    bos, eos = last.bos is not None, last.eos is not None
    return IngestPolicy(tokenizer=tokenizer, name=last.tokenizer, bos=bos, eos=eos)


def _check_spec(commits: Sequence[Commit], digest: str, spec: str | None) -> None:
    """Raise DataError unless `spec` is the dataset's tokenizer, or the `bpe:N` of its training."""
    if spec is None:
        return
    if bpe_size(spec):
        tokenizer = f"{spec}, to be trained anew"
        same = any(commit.body["extra"].get("ingest", {}).get("tokenizer") == spec for commit in commits)
    else:
        tokenizer = load_tokenizer(spec).digest
        same = tokenizer == digest
    if not same:
        raise DataError(
            f"The dataset has another tokenizer, {digest}",
            found=tokenizer,
            remedy="Leave --tokenizer out to use the dataset's own, or name another dataset.",
        )
