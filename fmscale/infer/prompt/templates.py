"""Templates of tasks and prompts with values. They are foreign code, as chat templates are."""

from collections.abc import Mapping
from typing import Any

from fmscale.data.chat.sandbox import run_strict
from fmscale.errors import ConfigError


def fill(where: str, template: str, values: Mapping[str, Any]) -> Any:
    """The text of a template with the values of its names, or the value of a template that is one expression:
    `{{ choices }}` may be a list.

    Raises ConfigError with `where` (the file, the key, the document) for a template that fails, does not end, or gives
    too much.
    """
    try:
        return run_strict(template, values)
    except Exception as error:
        raise ConfigError(
            f"{where}: the template fails",
            found=f"{type(error).__name__}: {error}",
            remedy="Use the fields that the document has, and correct the template.",
        ) from error
