"""The table of README.md, from the report of a quickstart."""

from fmscale.quickstart.results import Report, bits, verdict


def as_markdown(report: Report) -> str:
    """Rows of the measurements, as Markdown."""
    ranks = " → ".join(map(str, report["world_sizes"]))
    stages = " → ".join(map(str, report["zero_stages"]))
    saved = [one["durable_seconds"] for one in report["checkpoints"] if one["durable_seconds"] is not None]
    same = report["order_hash_planned"] == report["order_hash_delivered"]
    unbroken, move = report["unbroken"], report["move"]
    mine, *others = bits(report).items()
    rows = {
        "stopped by a signal, moved": f"at step {move['step']} of {report['steps']}: {ranks} ranks, ZeRO stage {stages}"
        if move
        else "NO",
        "loss against an unbroken run": f"{unbroken['steps']} steps: {unbroken['equal_steps']} equal to the last bit, "
        f"the others within {unbroken['largest_difference']:.1e}",
        "documents and token bytes received, as planned": f"{'yes' if same else 'NO'} "
        f"(`{report['order_hash_delivered'][:16]}…`)",
        "waiting for data": f"{report['data_stall_fraction']:.2%} of the time of all steps",
        "checkpoints": f"{len(report['checkpoints'])}; training stood still for "
        f"{report['ckpt_blocking_seconds_max'] * 1e3:.0f} ms at most; durable within {max(saved, default=0):.2f} s",
        "model, training": f"{report['parameters']:,} parameters, {report['steps']} steps, "
        f"{report['tokens']:,} tokens, loss {report['loss_first']:.2f} → {report['loss_last']:.2f}",
        f"held-out bits per byte ({report['heldout_documents']} files, {report['heldout_bytes']:,} bytes)": "<br>".join(
            [
                f"**{mine[1]:.3f} this model**",
                *(f"{value:.3f} {name}" for name, value in others),
                verdict(report),
            ]
        ),
        "time": f"{report['cpu_seconds']:.0f} s of CPU time, {report['wall_seconds']:.0f} s in all, on "
        f"{report['machine']['cores']} shared cores ({report['machine']['processor']})",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"


def life_as_markdown(report: Report) -> str:
    """The accuracies of `fmscale quickstart life`, as Markdown."""
    titles = {"sft": "fine-tuned", "lora": "by a LoRA", "dpo": "after DPO"}
    shares = {
        run: [f"{ways[way]['value']:.1%}" for way in ("plain", "direct", "steps")]
        for run, ways in report["accuracy"].items()
    }
    rows = [f"| {titles[run]} | {' | '.join(each)} |" for run, each in shares.items()]
    head = ["| right answers | asked plainly | “answer only” | “step by step” |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"
