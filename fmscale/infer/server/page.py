"""The page at `/`: one file without resources of others, and the policy that holds a browser to it."""

import base64
import hashlib
import re
from importlib.resources import files


def _digest(tag: str, page: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    assert found is not None
    return f"sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}"


_TEXT = files(__package__).joinpath("page.html").read_text("utf-8")
PAGE = _TEXT.encode()
"""The page in UTF-8. It shows answers as plain text, never as HTML."""
POLICY = (
    f"default-src 'none'; script-src '{_digest('script', _TEXT)}'; style-src '{_digest('style', _TEXT)}'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: only the page's own script and style, and only requests to the server itself."""
