"""From runs to claims in the schema of every fmscale benchmark, each with its target."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.kernels.ceilings import Ceilings
from benchmarks.kernels.contest import Run


@dataclass(frozen=True, kw_only=True)
class Target:
    """Target of a claim, and its aim beyond the target."""

    id: str
    """Id of the claim, with the direction (fwd, bwd) where a kernel has several claims."""
    what: str
    """The problem in words."""
    limit: str
    """"matmul" or "copy": the ceiling that limits the rate."""
    must: Mapping[str, float] = field(default_factory=dict)
    """Least ratio of fmscale's rate to each peer's rate, in every row of the claim."""
    aim: Mapping[str, float] = field(default_factory=dict)
    """Aim for the ratio of fmscale's rate to each peer's rate."""
    aim_rate: float | None = None
    """Aim for fmscale's rate."""
    beyond: str = ""
    """A goal beyond the aim, in words."""
    at_most: Mapping[str, float] = field(default_factory=dict)
    """Upper limits of further figures: {"extra GiB": 1.0}."""

    @property
    def text(self) -> str:
        """The target in one line."""
        parts = [f">= {ratio:g} x {peer}" for peer, ratio in self.must.items()]
        parts += [f"{name} <= {top:g}" for name, top in self.at_most.items()]
        return "; ".join(parts)

    @property
    def aim_text(self) -> str:
        """The aim in one line, empty if there is none."""
        parts = [f">= {ratio:g} x {peer}" for peer, ratio in self.aim.items()]
        parts += [f">= {self.aim_rate:g} {self.unit}"] if self.aim_rate else []
        return "; ".join(parts) + (f"; beyond: {self.beyond}" if self.beyond else "")

    @property
    def unit(self) -> str:
        """Unit of the claim's rates."""
        return "TFLOP/s" if self.limit == "matmul" else "TB/s"


ATTENTION = "bf16, 32 query and 8 key heads, 16k tokens"
TARGETS = (
    Target(
        id="forward causal E=128", what=f"attention forward, {ATTENTION}", limit="matmul",
        must={"flash": 1.25, "flex": 1.05}, aim={"cudnn": 0.80}, beyond="0.95 x cudnn",
    ),
    Target(
        id="forward causal E=64", what=f"attention forward, {ATTENTION}", limit="matmul",
        must={"flash": 1.15}, aim={"cudnn": 0.90}, beyond="1.05 x cudnn",
    ),
    Target(
        id="backward causal E=128, deterministic", what=f"attention backward, {ATTENTION}; peers not "
        "deterministic", limit="matmul",
        must={"flash": 1.0, "flex": 1.05}, aim={"cudnn": 0.70}, beyond="1.0 x FA3 deterministic",
    ),
    Target(
        id="packed documents fwd+bwd", what="16k tokens of documents, mean 1k, causal, all preparation "
        "included", limit="matmul",
        must={"flex": 3.0}, aim={"varlen": 1.3}, beyond="0.95 x fa4",
    ),
    Target(
        id="window 1024 + sinks, E=64", what="attention forward and backward, 64 query and 8 key heads",
        limit="matmul", must={"flex": 1.2}, aim={"cudnn": 0.95}, beyond="1.1 x cudnn",
    ),
    Target(
        id="RMSNorm fwd", what="16384 x 4096, bf16", limit="copy", must={"eager": 1.0}, aim_rate=3.6,
        beyond="85 % of copy",
    ),
    Target(
        id="RMSNorm bwd", what="16384 x 4096, bf16", limit="copy", must={"eager": 1.6}, aim_rate=3.3,
        beyond="85 % of copy",
    ),
    Target(
        id="fused linear CE fwd+bwd", what="8192 tokens x 4096, bf16; 6 M H V operations", limit="matmul",
        must={"liger": 1.0}, aim_rate=550.0, beyond="620 TFLOP/s", at_most={"extra GiB": 1.0},
    ),
    Target(
        id="AdamW partition", what="flat partition, bf16 gradient and copy, 28 bytes a parameter", limit="copy",
        must={"torch fused + copy": 1.0}, aim_rate=3.7,
    ),
    Target(id="add + RMSNorm fwd", what="16384 x 4096, bf16", limit="copy", must={"eager": 1.3}),
    Target(id="RoPE fwd", what="16k tokens, 32 + 8 heads of 128, bf16", limit="copy", must={"compiled": 1.0}),
    Target(id="SwiGLU fwd", what="16384 x 14336, bf16", limit="copy", must={"compiled": 1.0}),
    Target(id="SwiGLU bwd", what="16384 x 14336, bf16", limit="copy", must={"compiled": 1.0}),
    Target(id="byte-plane split", what="fp32 numbers", limit="copy", must={"eager": 1.0}),
)  # fmt: skip


def judge(target: Target, runs: Sequence[Run]) -> bool | None:
    """True if every row reaches every ratio and limit, False if a row misses any, None if a measurement is missing."""
    verdicts = [_ratios(run, target.must) for run in runs]
    for run in runs:
        for name, top in target.at_most.items():
            if "ours" in run.rates:
                verdicts.append(run.extra[name] <= top if name in run.extra else None)
    return _all(verdicts)


def judge_aim(target: Target, runs: Sequence[Run]) -> bool | None:
    """`judge` for the aim."""
    verdicts = [_ratios(run, target.aim) for run in runs if target.aim]
    if target.aim_rate is not None:
        verdicts += [run.rates["ours"] >= target.aim_rate if "ours" in run.rates else None for run in runs]
    return _all(verdicts)


def _ratios(run: Run, ratios: Mapping[str, float]) -> bool | None:
    ours = run.rates.get("ours")
    if ours is None:  # fmscale's kernel failed where peers ran
        return False if run.rates else None
    if not ratios:
        return True
    return _all([ours >= r * run.rates[peer] if peer in run.rates else None for peer, r in ratios.items()])


def _all(verdicts: Sequence[bool | None]) -> bool | None:
    if False in verdicts:
        return False
    return None if None in verdicts or not verdicts else True


def claim(target: Target, runs: Sequence[Run], ceilings: Ceilings | None) -> dict[str, Any]:
    """A claim as JSON; its headline figures are from its last row, the largest problem."""
    head = runs[-1] if runs else None
    ours = head.rates.get("ours") if head else None
    limit = getattr(ceilings, target.limit) if ceilings else None
    reasons = dict(head.reasons) if head else {"ours": "not measured"}
    named = {name for run in runs for name in (*run.rates, *run.reasons)}
    peers = sorted((named | set(target.must) | set(target.aim)) - {"ours"})
    missing = [name for name in ("ours", *peers) if head is None or name not in head.rates]
    return {
        "id": target.id,
        "what": target.what + (f", {head.variant}" if head and head.variant else ""),
        "unit": target.unit,
        "ours": ours,
        "peers": {name: head.rates.get(name) if head else None for name in peers},
        "reasons": {name: reasons.get(name, "not tried") for name in missing},
        "limit": limit,
        "ratio": ours / limit if ours is not None and limit else None,
        "target": target.text,
        "ok": judge(target, runs),
        "aim": target.aim_text,
        "aim_ok": judge_aim(target, runs),
        "runs": [asdict(run) for run in runs],
    }


def assemble(runs: Sequence[Run], ceilings: Ceilings | None) -> list[dict[str, Any]]:
    """Every claim, in the order of the targets, also a claim that loses or was not measured."""
    return [claim(target, [r for r in runs if r.id == target.id], ceilings) for target in TARGETS]
