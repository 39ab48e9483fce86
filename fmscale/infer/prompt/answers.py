"""The answer in a reply, and the majority of several answers."""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fmscale.config.checks import InvalidField

NUMBER = r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+"
LETTER = r"\b[A-Z]\b"
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """The way from a reply to its answer. Right answers take the same way, but for `find`."""

    find: Literal["all", "number", "letter", "regex"] = "all"
    """The whole reply; a number, without commas between its digits; a capital letter that stands alone; or `regex`."""
    regex: str | None = None
    """Python's regular expression for `find: regex`; with groups, the first group that has text."""
    take: Literal["first", "last"] = "last"
    """The first of several matches, or the last."""
    strip: bool = True
    """Remove white space at both ends."""
    remove: tuple[str, ...] = ()
    """Regular expressions of parts to remove."""
    ignore_case: bool = False
    """Compare in lower case."""
    ignore_punctuation: bool = False
    """Compare without ASCII punctuation."""

    def __post_init__(self) -> None:
        if (self.regex is None) == (self.find == "regex"):
            raise InvalidField(
                "regex", "belongs to find: regex", found=self.regex, remedy="Give both find: regex and a regex."
            )
        for name, patterns in (("regex", [self.regex or ""]), ("remove", self.remove)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise InvalidField(
                        name, f"is no regular expression: {error}", found=pattern, remedy="Correct it."
                    ) from error


def parse_answer(reply: str, config: AnswerConfig) -> str | None:
    """The answer in a reply, or None where none is found."""
    if config.find == "all":
        return plain_answer(reply, config)
    pattern = {"number": NUMBER, "letter": LETTER}.get(config.find) or config.regex or ""
    found = re.findall(pattern, reply)
    if not found:
        return None
    match = found[0 if config.take == "first" else -1]
    if isinstance(match, tuple):
        match = next((group for group in match if group), "")
    return plain_answer(match.replace(",", "") if config.find == "number" else match, config)


def plain_answer(text: str, config: AnswerConfig) -> str:
    """An answer, right or given, in the form in which answers are compared."""
    for pattern in config.remove:
        text = re.sub(pattern, "", text)
    text = text.lower() if config.ignore_case else text
    text = text.translate(_PUNCTUATION) if config.ignore_punctuation else text
    return text.strip() if config.strip else text


def majority(answers: Sequence[str | None], weights: Sequence[float]) -> str | None:
    """The most frequent answer (self-consistency, Wang et al., arXiv 2203.11171); None if there is none.

    Equal counts go to the larger sum of weights, the replies' probabilities, and then to the first answer.
    """
    given = [answer for answer in dict.fromkeys(answers) if answer is not None]
    sums = {a: sum(w for w, b in zip(weights, answers, strict=True) if a == b) for a in given}
    return max(given, key=lambda answer: (answers.count(answer), sums[answer]), default=None)
