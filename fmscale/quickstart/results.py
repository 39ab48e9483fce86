"""Results of a quickstart, from the metrics, delivery records, checkpoints and held-out bits that it left."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from fmscale.checkpoint.catalog import list_checkpoints, load_manifest
from fmscale.checkpoint.read.meta import section
from fmscale.config import Config, TrainConfig, derive_batch
from fmscale.data.plan.order_log import OrderLog
from fmscale.data.provenance.delivery import order_hash
from fmscale.data.provenance.expected import expected_samples
from fmscale.errors import DataError
from fmscale.quickstart.heldout import Bits
from fmscale.runtime.provenance import gpus, source, this_machine, versions
from fmscale.runtime.sinks.jsonl import read_jsonl
from fmscale.store.backends.protocol import Backend
from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.train.compare import History, compare

FORMAT_VERSION = 2
PACKAGES = ("fmscale", "torch", "deepspeed", "numpy", "pyarrow", "tokenizers")
"""Packages whose versions are in a report."""
STALL_LIMIT = 0.02
BLOCKING_LIMIT = 0.3
LOSS_LIMIT = 1e-3
"""Largest relative difference of a step's loss to the unbroken run's: another number of ranks adds in another order."""

Report = dict[str, Any]


class Claim(NamedTuple):
    """A result that every quickstart must have."""

    ok: bool
    """True if the result is as claimed."""
    what: str
    value: str


def build_report(
    config: Config,
    backend: Backend,
    history: History,
    unbroken: History,
    *,
    steps: int,
    documents: Sequence[Bits],
    completions: Sequence[dict[str, str]],
    parameters: int,
    primed_bytes: int,
    warnings: Sequence[str],
    corpus: dict[str, Any],
) -> Report:
    """All of report.json but the times of the acts. Raises DataError without delivery records."""
    run = config.train.run
    records = [history.steps[step] for step in sorted(history.steps)]
    seconds = sum(record["seconds"] for record in records)
    checkpoints = _checkpoints(backend, run, history.folder)
    planned, delivered = _order_hashes(config, backend, history, steps)
    total = sum(document.bytes for document in documents)
    return {
        "format_version": FORMAT_VERSION,
        "run": run,
        "store": config.store.url,
        "steps": len(records),
        "parameters": parameters,
        "primed_bytes": primed_bytes,
        "warnings": list(warnings),
        "loss_first": records[0]["loss"],
        "loss_last": records[-1]["loss"],
        "unbroken": _against_unbroken(history, unbroken),
        "heldout_bits_per_byte": sum(document.model for document in documents) / total,
        "primed_zstd_bits_per_byte": sum(document.primed for document in documents) / total,
        "gzip_bits_per_byte": sum(document.gzip for document in documents) / total,
        "xz_bits_per_byte": sum(document.xz for document in documents) / total,
        "heldout_documents": len(documents),
        "heldout_bytes": total,
        "tokens": sum(record["tokens"] for record in records),
        "tokens_per_second": sum(record["tokens"] for record in records) / seconds,
        "data_stall_fraction": sum(record["data_stall"] for record in records) / seconds,
        "ckpt_blocking_seconds_max": max(record["ckpt_blocking"] for record in records),
        "order_hash_planned": planned,
        "order_hash_delivered": delivered,
        "world_sizes": [size for size, _ in groupby(checkpoint["world_size"] for checkpoint in checkpoints)],
        "zero_stages": [stage for stage, _ in groupby(checkpoint["zero_stage"] for checkpoint in checkpoints)],
        "resumed_at": [a["step"] for a, b in pairwise(checkpoints) if a["epoch"] != b["epoch"]],
        "move": find_move(checkpoints, history.folder),
        "checkpoints": checkpoints,
        "corpus": corpus,
        "documents": [asdict(document) for document in documents],
        "completions": list(completions),
        "machine": {**this_machine(), "gpus": gpus()},
        "versions": versions(PACKAGES),
        "source": source(),
    }


def find_move(checkpoints: Sequence[dict[str, Any]], folder: Path) -> dict[str, int] | None:
    """The move to other ranks or another stage: `step`, from which the new ranks went on, and `stopped`, the last step
    of the old ranks. The two differ only if the old ranks were killed. None without a move.
    """
    place = ("world_size", "zero_stage")
    moves = [a["step"] for a, b in pairwise(checkpoints) if any(a[key] != b[key] for key in place)]
    if not moves:
        return None
    stopped = 0
    for record in read_jsonl(folder / "metrics.jsonl"):
        if record.get("event") == "resumed" and record["step"] == moves[0]:
            break
        if "event" not in record:
            stopped = record["step"]
    return {"step": moves[0], "stopped": stopped}


def claims(report: Report) -> list[Claim]:
    """The promises of fmscale that hold for any text, with their measured values; the model's quality is no promise."""
    planned, delivered = report["order_hash_planned"], report["order_hash_delivered"]
    stall, blocking = report["data_stall_fraction"], report["ckpt_blocking_seconds_max"]
    moved, how = _moved(report)
    unbroken = report["unbroken"]
    same = f"{delivered[:16]} {'=' if planned == delivered else 'is not'} {planned[:16]}"
    return [
        Claim(moved, "a signal stopped training half-way; other ranks at another ZeRO stage went on", how),
        Claim(
            same_loss(report),
            "its loss is that of a run that nothing stopped, step by step, on the same samples",
            f"{unbroken['steps']} steps, {unbroken['steps'] - unbroken['equal_steps']} of them not equal to the last "
            f"bit, by {unbroken['largest_difference']:.1e} at most"
            + ("" if unbroken["same_samples"] else "; other samples"),
        ),
        Claim(planned == delivered, "what the model received is what was planned, byte for byte", same),
        Claim(stall < STALL_LIMIT, f"training waits for data less than {STALL_LIMIT:.0%} of its time", f"{stall:.3%}"),
        Claim(
            blocking < BLOCKING_LIMIT,
            f"no checkpoint stops training for {BLOCKING_LIMIT} s",
            f"{blocking * 1e3:.0f} ms at most",
        ),
    ]


def bits(report: Report) -> dict[str, float]:
    """Held-out bits per byte: of the model, then of each compressor, under a name with the text that it has read."""
    others = {
        f"zstd −19 that has read the {report['primed_bytes'] / 1e6:.1f} MB of training text": "primed_zstd",
        "xz −9, each file alone": "xz",
        "gzip −9, each file alone": "gzip",
    }
    named = {name: float(report[f"{key}_bits_per_byte"]) for name, key in others.items()}
    return {"this model": report["heldout_bits_per_byte"], **named}


def verdict(report: Report) -> str:
    """Comparison of the model with the best compressor, by the bits that each needs for the held-out text."""
    sizes = bits(report)
    mine = sizes.pop("this model")
    name, best = min(sizes.items(), key=lambda item: item[1])
    how = f"{abs(1 - mine / best):.0%} {'fewer' if mine < best else 'more'} bits than {name}"
    return f"the model needs {how}" + ("" if mine < best else ", which wins")


def same_loss(report: Report) -> bool:
    """True if both runs have the same samples and, within LOSS_LIMIT, the same losses, also beyond the move."""
    unbroken, move = report["unbroken"], report["move"]
    past = move is None or unbroken["steps"] > move["step"]
    return bool(past and unbroken["same_samples"] and unbroken["largest_difference"] <= LOSS_LIMIT)


def _against_unbroken(history: History, unbroken: History) -> Report:
    """Comparison of the steps that both runs took; the difference of losses is relative."""
    comparison = compare(history, unbroken, common=True)
    both = sorted(history.steps.keys() & unbroken.steps.keys())
    return {
        "steps": len(both),
        "equal_steps": sum(history.steps[step]["loss"] == unbroken.steps[step]["loss"] for step in both),
        "largest_difference": comparison.largest.get("loss", 0.0),
        "samples": comparison.samples,
        "same_samples": bool(comparison.samples)
        and not any(name.startswith("delivered ") for name in comparison.parts),
    }


def _checkpoints(backend: Backend, run: str, folder: Path) -> list[dict[str, Any]]:
    """The run's checkpoints as in its log, with the times that the ranks measured."""
    measured = {
        record["step"]: record
        for record in read_jsonl(folder / "metrics.jsonl")
        if record.get("event") == "checkpoint" and record.get("state") == "acknowledged"
    }
    return [
        {
            "step": entry.step,
            "epoch": entry.lease,
            "world_size": entry.world_size,
            "zero_stage": section(load_manifest(backend, entry).meta, "train", TrainConfig).zero_stage,
            "bytes": entry.bytes,
            **{name: measured.get(entry.step, {}).get(name) for name in ("blocking_seconds", "durable_seconds")},
        }
        for entry in list_checkpoints(backend, run)
    ]


def _moved(report: Report) -> tuple[bool, str]:
    """True if training stopped before its end and went on with other ranks and stage; and a description."""
    worlds, stages, move = report["world_sizes"], report["zero_stages"], report["move"]
    where = f"{' → '.join(map(str, worlds))} ranks, stage {' → '.join(map(str, stages))}"
    if move is None:
        return False, f"never moved: {where}"
    at = f"step {move['step']} of {report['steps']}"
    if move["stopped"] != move["step"]:
        return False, f"killed after step {move['stopped']}, went on from {at}: {where}"
    # A machine with one GPU cannot change the number of ranks.
    elsewhere = len(stages) == 2 and (len(worlds) == 2 or worlds == [1])
    return elsewhere and 0 < move["step"] < report["steps"], f"at {at}: {where}"


def _order_hashes(config: Config, backend: Backend, history: History, steps: int) -> tuple[str, str]:
    """(planned, delivered): hashes of the expected samples, from the store alone, and of the delivered samples."""
    batch = derive_batch(config.batch, 1).global_batch
    plan = OrderLog(Log(backend, f"runs/{config.train.run}", RUN_KINDS)).plan
    planned = order_hash(expected_samples(backend, plan, 0, steps * batch))
    if history.delivered is None:
        raise DataError(
            "the run has no delivery records, so what its model received is not known",
            found=str(history.folder / "delivery"),
            remedy="Train with train.record_delivery: true.",
        )
    return planned, order_hash(history.delivered)
