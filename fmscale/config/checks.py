"""Refusal of a field's value. The error names the field, and the reader adds file and line."""

from collections.abc import Collection, Sequence

from fmscale.errors import ConfigError


class InvalidField(ConfigError):
    """A field's value has the right type, but cannot be used.

    A section's `__post_init__` raises it; for a section read from YAML the reader puts `place` in front.
    """

    def __init__(self, field: str, problem: str, *, found: object, remedy: str, place: str = "") -> None:
        super().__init__(f"{place}: {field} {problem}" if place else f"{field} {problem}", found=found, remedy=remedy)
        self.field = field
        self.problem = problem


class ConfigProblems(ConfigError):
    """Two or more problems of a config, found together; each is shown on a line of its own."""

    several_lines = True

    def __init__(self, problems: Sequence[ConfigError]) -> None:
        lines = "".join(f"\n  {number}. {problem}" for number, problem in enumerate(problems, start=1))
        shown = f"the config has {len(problems)} problems:{lines}".removesuffix(".")
        super().__init__(shown, remedy="Correct each as its line says.")
        self.problems = tuple(problems)


def problems_of(error: ConfigError) -> tuple[ConfigError, ...]:
    """The problems that an error tells."""
    return error.problems if isinstance(error, ConfigProblems) else (error,)


def together(problems: Sequence[ConfigError]) -> ConfigError:
    """One error that tells all problems; a single problem is its own error."""
    return problems[0] if len(problems) == 1 else ConfigProblems(problems)


def at_least(section: object, least: float, *names: str, hint: str = "") -> None:
    """Refuse a number below `least` in one of the fields; None passes. `hint` follows the remedy."""
    remedy = f"Give {least:_} or more." + (f" {hint}" if hint else "")
    for name in names:
        value = getattr(section, name)
        if value is not None and value < least:
            raise InvalidField(name, f"must be at least {least:_}", found=value, remedy=remedy)


def at_most(section: object, most: float, *names: str) -> None:
    """Refuse a number above `most` in one of the fields; None passes."""
    for name in names:
        value = getattr(section, name)
        if value is not None and value > most:
            raise InvalidField(name, f"must be at most {most:_}", found=value, remedy=f"Give {most:_} or less.")


def above_zero(section: object, *names: str, remedy: str = "Give a number above 0.") -> None:
    """Refuse 0 or a number below 0 in one of the fields; None passes."""
    for name in names:
        value = getattr(section, name)
        if value is not None and value <= 0:
            raise InvalidField(name, "must be above 0", found=value, remedy=remedy)


def not_empty(field: str, value: Collection[object], remedy: str) -> None:
    """Refuse an empty text or list."""
    if not value:
        raise InvalidField(field, "must not be empty", found=value, remedy=remedy)
