"""Code shapes that released Triton versions are known to miscompile on Hopper, found in TTGIR."""

import re


def lint(ttgir: str, version: str) -> list[str]:
    return []
