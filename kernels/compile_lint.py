"""Code shapes that released Triton versions are known to miscompile on Hopper, found in TTGIR.

A configuration that shows one is refused, whatever it computes on the machine at hand: these faults
depend on tile sizes and warps, and most tests of numbers miss them.
"""

import re

_VALUE = re.compile(r"%[\w#]+")
_DEFINITION = re.compile(r"^\s*(%[\w#]+)(?::\d+)?\s*=\s*([\w.]+)(.*)$")
_DOT = "ttng.warp_group_dot"
_TURNS = ("tt.trans", "ttg.memdesc_trans")


def parsed(version: str) -> tuple[int, ...]:
    """ "3.7.1+git" as (3, 7, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def lint(ttgir: str, version: str) -> list[str]:
    """Known faults that the kernel's TTGIR would meet in Triton `version`; empty when there are none."""
    problems = []
    definitions = _definitions(ttgir)
    dots = [(name, rest) for name, (op, rest) in definitions.items() if op == _DOT]
    if (3, 4, 0) <= parsed(version) < (3, 7, 1):
        for name, rest in dots:
            if _turned_product(_VALUE.findall(rest)[0], definitions):
                problems.append(
                    f"{name} has a transposed product as its left operand: wrong numbers on Hopper before "
                    "Triton 3.7.1 (flash-linear-attention issue 640, triton issue 6124)"
                )
    warps = re.search(r'"ttg.num-warps"\s*=\s*(\d+)', ttgir)
    if parsed(version) >= (3, 6, 0) and warps and warps[1] == "4":
        for name, rest in dots:
            if any(_narrow(shape) for shape in re.findall(r"memdesc<([\dx]+x[a-z]+\d+)", rest)):
                problems.append(
                    f"{name} reads a shared tile with rows of 64 bytes by one warpgroup: reads outside shared "
                    "memory since Triton 3.6 (triton issues 11366, 10573)"
                )
    return problems


def _narrow(shape: str) -> bool:
    *sizes, kind = shape.split("x")
    return int(sizes[-1]) * int(kind.lstrip("abfi")) // 8 == 64


def _definitions(ttgir: str) -> dict[str, tuple[str, str]]:
    """Value -> (operation, the rest of its line); of two regions' equal names the later, which is nearer."""
    found = {}
    for line in ttgir.splitlines():
        match = _DEFINITION.match(line)
        if match:
            found[match[1]] = (match[2], match[3])
    return found


def _turned_product(value: str, definitions: dict[str, tuple[str, str]], turned: bool = False) -> bool:
    """Whether `value` comes from a product through a transposition, by whatever elementwise steps."""
    pending, seen = [(value, turned)], set()
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
