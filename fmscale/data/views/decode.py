"""Reads a view of any kind back from its JSON."""

import json
from dataclasses import fields
from typing import Any

from fmscale.data.order.order import ORDER_VERSION
from fmscale.data.views.record_view import RecordView
from fmscale.data.views.token_view import TokenView
from fmscale.data.views.view import FORMAT_VERSION, View
from fmscale.errors import FormatError
from fmscale.store.digest import canonical_json

KINDS: dict[str, type[View]] = {view.kind: view for view in (TokenView, RecordView)}


def decode_view(value: str | bytes | dict[str, Any]) -> View:
    """The view from its JSON, as text or as values. Raises FormatError for a version or kind not known here."""
    values = dict(value) if isinstance(value, dict) else json.loads(value)
    version = values.pop("format_version", None)
    kind = KINDS.get(values.pop("kind", None) if version != 1 else "tokens")
    if version not in range(1, FORMAT_VERSION + 1) or kind is None or values.get("order_version") != ORDER_VERSION:
        raise FormatError(
            "a view of another format or order",
            found=(version, values.get("order_version")),
            remedy=f"This fmscale knows format_version 1 to {FORMAT_VERSION}, order_version {ORDER_VERSION}.",
        )
    spec = values.pop("spec", None)
    known = {field.name for field in fields(kind)} - {"spec"}
    if set(values) != known:
        raise FormatError(
            "a view lacks fields or has unknown ones",
            found=sorted(set(values) ^ known),
            remedy="It was written by another fmscale: upgrade here, or make the view anew.",
        )
    arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**arguments, spec=canonical_json(spec).decode() if spec else "")
