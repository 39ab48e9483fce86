"""The protocol of places that metrics go to."""

from collections.abc import Mapping
from typing import Any, Protocol


class Sink(Protocol):
    """Takes one record at a time."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Keep one record: names to numbers or texts, `step` among them."""
        ...

    def close(self) -> None:
        """End: no record follows."""
        ...
