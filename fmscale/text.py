"""Text for people: without credentials, and with control characters as escapes (promise P9)."""

import os
import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import quote

MASK = "***"
ALWAYS = (
    r"(?:secret|password|passwd|passphrase|signature|access[_-]?key|account[_-]?key|api[_-]?key|private[_-]?key"
    r"|secret[_-]?key)"
)
WORDS = ("secret", "passw", "passphrase", "signature", "key")
IF_LONG = r"(?:token|credentials?|sig)"
"""Names that also have a harmless meaning (a token is mostly a piece of text): their value is masked if it has 16 or
more characters of the kind that keys have, with a digit among them."""

PATTERNS = (
    # a PEM block
    (("private key-",), r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)", MASK),
    # user:password@ in a URL, where the password may have any mark; a port is no password
    (
        ("@", "%40"),
        r"(://|%3A%2F%2F)[^\s/:@'\"#?%]*(?::|%3A)(?!\d{1,5}(?:[/?#\s'\"]|$))[^\s'\"]*?(?:@|%40)(?![^\s'\"/]*@)",
        rf"\1{MASK}@",
    ),
    # or only a key before the @
    (("@", "%40"), r"(://|%3A%2F%2F)[^/\s@'\"?#]+(?:@|%40)", rf"\1{MASK}@"),
    # a URL's parameter of such a name is a credential at any length (sig=..., X-Amz-Credential=...)
    (("?", "&"), rf"([?&](?:key|code|[\w-]*(?:{ALWAYS}|{IF_LONG})\w*)=)[^&\s\"']+", rf"\1{MASK}"),
    # name=value, name: value and "name": "value", also as a URL's parameter (X-Amz-Signature=...)
    (WORDS, rf"({ALWAYS}[\"']?\s*[=:]\s*)(?:\"[^\"]*\"|'[^']*')", rf"\1{MASK}"),
    (WORDS, rf"({ALWAYS}[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,;)}}\]]+", rf"\1{MASK}"),
    (
        ("token", "credential", "sig"),
        rf"({IF_LONG}[\"']?\s*[=:]\s*[\"']?)(?=\D*\d)[\w+/%.=-]{{16,}}",
        rf"\1{MASK}",
    ),
    (("bearer", "basic"), r"(\b(?:bearer|basic)\s+)[A-Za-z0-9+/._~=-]{8,}", rf"\1{MASK}"),
    # keys that show by their form: AWS, Google, GitHub, GitLab, Hugging Face, OpenAI, Slack, a JSON web token
    (("akia", "asia"), r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b", MASK),
    (
        ("aiza", "gh", "glpat-", "hf_", "sk-", "xox", "eyj"),
        r"\b(?:AIza[\w-]{30,}|gh[opsu]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[a-z0-9]{20,}|sk-[\w-]{16,}"
        r"|xox[abeprs]-[\w-]{10,}|eyJ[\w-]{8,}\.[\w-]{2,}\.[\w-]*)",
        MASK,
    ),
)
"""(texts of which a match has one, in small letters; pattern; replacement), compiled at their first use: a start does
without them.
"""
SECRET_VARIABLE = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|ACCESS_KEY|ACCOUNT_KEY|API_KEY|(^|_)(SAS|KEY|PASS)(_|$)",
    re.IGNORECASE,
)
SHORTEST_SECRET = 8
"""Shorter values are not masked: masking "test" or "1" would hide half of a traceback."""


def scrub(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """`text` with passwords in URLs, signatures, keys and the values of secret variables replaced by ***.

    A variable that holds the path of an existing file is not a secret itself.
    """
    for name, value in environ.items():
        if len(value) >= SHORTEST_SECRET and SECRET_VARIABLE.search(name) and not os.path.exists(value):
            for form in (value, quote(value, safe=""), quote(value)):
                text = text.replace(form, MASK)
    small = text.lower()
    for needles, pattern, replacement in PATTERNS:
        # The search for a few texts takes 2 us, the patterns alone 500 us for a line.
        if any(needle in small for needle in needles):
            text = _compiled(pattern).sub(replacement, text)
    return text


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


def printable(text: str) -> str:
    """`text` on one line: control characters, line breaks, marks of direction and lone surrogates become escapes, so
    that a name from elsewhere can neither steer the terminal nor pass for a line of ours.
    """
    if text.isprintable():
        return text
    return "".join(c if _harmless(c) else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """`text` with its line breaks and tabs, and other control characters as escapes."""
    return "".join(part if part in "\n\t" else printable(part) for part in re.split(r"([\n\t])", text))


def _harmless(c: str) -> bool:
    # Joiners (200C, 200D) are letters' forms in Persian and Hindi, and parts of emoji.
    return c.isprintable() or c in "\u200c\u200d" or unicodedata.category(c) == "Zs"


def clean(text: str) -> str:
    """`text` for a terminal, a log or an error: scrubbed and printable."""
    return printable(scrub(text))


def clean_tree(tree: Any, name: str = "") -> Any:
    """A config's plain values for a record: texts are scrubbed, a text under the name of a secret is masked, and
    `launch.environment` keeps its names alone.
    """
    if isinstance(tree, Mapping):
        if name == "environment":
            return dict.fromkeys(tree, MASK)
        return {key: clean_tree(value, key) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [clean_tree(item, name) for item in tree]
    if not isinstance(tree, str) or not tree:
        return tree
    return MASK if re.search(ALWAYS, name, re.IGNORECASE) else scrub(f"{name}={tree}").partition("=")[2]


def human_bytes(size: float) -> str:
    """Bytes with a binary unit: 1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"
