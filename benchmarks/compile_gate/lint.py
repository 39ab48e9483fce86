"""Code shapes that released Triton versions are known to miscompile on Hopper, found in TTGIR.

A configuration with such a shape is refused, even if its numbers are right on the machine at hand: these faults depend
on tile sizes and warps, and most tests of numbers miss them.
"""

import re

_VALUE = re.compile(r"%[\w#]+")
_DEFINITION = re.compile(r"^\s*(%[\w#]+)(?::\d+)?\s*=\s*([\w.]+)(.*)$")
_DOT = "ttng.warp_group_dot"
_TURNS = ("tt.trans", "ttg.memdesc_trans")
Definitions = dict[str, tuple[str, str]]
"""Value -> (operation, the rest of its line)."""


def parsed(version: str) -> tuple[int, ...]:
    """ "3.7.1+git" as (3, 7, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def lint(ttgir: str, version: str) -> list[str]:
    """Known faults that the kernel's TTGIR would meet in Triton `version`; empty without faults."""
    release = parsed(version)
    narrow = set(re.findall(r"^(#\w+) = #ttg.nvmma_shared<\{swizzlingByteWidth = (?:32|64),", ttgir, re.MULTILINE))
    problems = []
    # sibling regions use the same names: a use means the last definition before it
    definitions: Definitions = {}
    for line in ttgir.splitlines():
        match = _DEFINITION.match(line)
        if not match:
            continue
        name, op, rest = match.groups()
        definitions[name] = (op, rest)
        if op != _DOT:
            continue
        if (3, 4, 0) <= release < (3, 7, 1) and _turned_product(_VALUE.findall(rest)[0], definitions):
            problems.append(
                f"{name}: a transposed product as the left operand gives wrong numbers on Hopper before "
                "Triton 3.7.1 (flash-linear-attention issue 640, triton issue 6124)"
            )
        if release >= (3, 6, 0) and narrow & set(re.findall(r"memdesc<[\dx]+x\w+, (#\w+)", rest)):
            problems.append(
                f"{name}: an operand whose rows in shared memory are 64 bytes or fewer is read out of bounds "
                "on Hopper since Triton 3.6 (triton issues 11366, 10573)"
            )
    return problems


def _turned_product(value: str, definitions: Definitions) -> bool:
    """True if `value` comes from a product through a transposition, by whatever elementwise steps."""
    pending, seen = [(value, False)], set()
    while pending:
        current = pending.pop()
        if current in seen or current[0] not in definitions:
            continue
        seen.add(current)
        op, rest = definitions[current[0]]
        through = current[1] or op in _TURNS
        if op.startswith(_DOT):
            if current[1]:
                return True
            continue
        if op.startswith(("scf.", "tt.load", "tt.reduce")):
            continue
        pending += [(operand, through) for operand in _VALUE.findall(rest)]
    return False
