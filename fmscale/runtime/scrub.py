"""Removes credentials from text for people or for files (promise P9)."""

import os
import re
from collections.abc import Mapping

MASK = "***"
ALWAYS = r"(?:secret|password|passwd|signature|access_?key|account_?key|api_?key)"
IF_LONG = r"(?:token|credentials?|sig)"
"""Names that also have a harmless meaning (a token is mostly a piece of text): their value is masked if it has 16 or
more characters of the kind that keys have, with a digit among them."""

PATTERNS = (
    # user:password@ in a URL, or only a key before the @
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@'\"]+@", re.IGNORECASE), rf"\1{MASK}@"),
    # a URL's parameter of such a name is a credential at any length (sig=..., X-Amz-Credential=...)
    (re.compile(rf"([?&][\w-]*(?:{ALWAYS}|{IF_LONG})\w*=)[^&\s\"']+", re.IGNORECASE), rf"\1{MASK}"),
    # name=value, name: value and "name": "value", also as a URL's parameter (X-Amz-Signature=...)
    (re.compile(rf"({ALWAYS}[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,;)}}\]]+", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(rf"({IF_LONG}[\"']?\s*[=:]\s*[\"']?)(?=\D*\d)[\w+/%.=-]{{16,}}", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"(\b(?:bearer|basic)\s+)[A-Za-z0-9+/._~=-]{8,}", re.IGNORECASE), rf"\1{MASK}"),
    # ids of AWS access keys, and a PEM block
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"), MASK),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)", re.DOTALL), MASK),
)
SECRET_VARIABLE = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|ACCOUNT_KEY|API_KEY|(^|_)SAS(_|$)", re.IGNORECASE
)
SHORTEST_SECRET = 8
"""Shorter values are not masked: masking "test" or "1" would hide half of a traceback."""


def scrub(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """`text` with passwords in URLs, signatures, keys and the values of secret variables replaced by ***.

    A variable that holds the path of an existing file is not a secret itself.
    """
    for name, value in environ.items():
        if len(value) >= SHORTEST_SECRET and SECRET_VARIABLE.search(name) and not os.path.exists(value):
            text = text.replace(value, MASK)
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text
