"""report.html: one file with everything in it, from report.json and the metrics of the steps."""

from collections.abc import Sequence
from html import escape
from typing import Any

from fmscale.quickstart.charts import Mark, dots_by_row, line_chart
from fmscale.quickstart.results import Report, bits, claims, same_loss, verdict
from fmscale.quickstart.style import STYLE

MOST_BITS = 6.0
"""Right end of the scale of bits per byte: a file of some dozen bytes takes gzip's header alone 10 and more."""

DOTS = (("gzip", "gzip"), ("xz", "xz"), ("primed", "primed"), ("fmscale", "model"))
"""Class of a dot in the drawing, and where a document has its bits; the last is drawn on top."""


def render(report: Report, records: Sequence[dict[str, Any]], unbroken: Sequence[dict[str, Any]]) -> str:
    """The page. `records`: metrics of each step, in order; `unbroken`: those of the run that nothing stopped."""
    lead = (
        f"A decoder of {report['parameters'] / 1e6:.1f} M parameters, trained from nothing on "
        f"{report['corpus']['what']} ({report['corpus']['bytes'] / 1e6:.1f} MB). Its loss is drawn over that of a run "
        f"that nothing stopped: they differ by {report['unbroken']['largest_difference']:.1e} at most. It stores text "
        f"that it never saw in {report['heldout_bits_per_byte']:.2f} bits per byte: {verdict(report)}."
    )
    body = [
        f"<header><p class='eyebrow'>fmscale quickstart</p><h1>{escape(_headline(report))}</h1>"
        f"<p class='lead'>{escape(lead)}</p></header>",
        _tiles(report),
        _claims(report),
        "<section><h2>The run</h2>" + _charts(report, records, unbroken) + "</section>",
        _documents(report),
        _completions(report),
        _facts(report),
    ]
    title = f"fmscale quickstart: {report['run']}"
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _headline(report: Report) -> str:
    worlds, stages = report["world_sizes"], report["zero_stages"]
    if len(worlds) < 2 and len(stages) < 2:
        return "Trained and measured"
    ranks = " to ".join(map(str, worlds)) if len(worlds) > 1 else f"{worlds[0]}"
    place = f"{ranks} ranks and ZeRO stage {' to '.join(map(str, stages))}"
    return f"Stopped, moved from {place}: {'the' if same_loss(report) else 'not the'} loss of an unbroken run"


def _tiles(report: Report) -> str:
    mine, *others = bits(report).items()
    tiles = [
        (
            "loss, beside an unbroken run's",
            f"{report['unbroken']['largest_difference']:.1e}",
            f"apart at most, in {report['unbroken']['steps']} steps",
        ),
        (
            "checkpoint blocking",
            f"{report['ckpt_blocking_seconds_max'] * 1e3:.0f} ms",
            "at most, in one step",
        ),
        ("data stall", f"{report['data_stall_fraction']:.2%}", "of the time of all steps"),
        ("tokens/s", f"{report['tokens_per_second']:,.0f}", "all ranks, data and checkpoints included"),
        ("held-out bits per byte", f"{mine[1]:.3f}", mine[0]),
        *(("held-out bits per byte", f"{value:.3f}", name) for name, value in others),
    ]
    inner = "".join(
        f"<div class='tile'><div class='label'>{escape(label)}</div><div class='value'>{escape(value)}</div>"
        f"<div class='note'>{escape(note)}</div></div>"
        for label, value, note in tiles
    )
    return f"<section class='tiles'>{inner}</section>"


def _claims(report: Report) -> str:
    rows = "".join(
        f"<li class='{'ok' if claim.ok else 'failed'}'><span class='sign'>{'✓' if claim.ok else '✗'}</span>"
        f"<span>{escape(claim.what)}</span><span class='value'>{escape(claim.value)}</span></li>"
        for claim in claims(report)
    )
    return f"<section><h2>What must come out</h2><ul class='claims'>{rows}</ul></section>"


def _charts(report: Report, records: Sequence[dict[str, Any]], unbroken: Sequence[dict[str, Any]]) -> str:
    steps = [record["step"] for record in records]
    marks = [Mark(x=step, label=_moved(report)) for step in report["resumed_at"]]

    def values(name: str, scale: float = 1.0) -> list[float]:
        return [scale * float(record[name]) for record in records]

    below = ([one["step"] for one in unbroken], [float(one["loss"]) for one in unbroken])
    # The fence costs microseconds at every step; a save shows.
    blocking = [value if value > 0.1 else 0.0 for value in values("ckpt_blocking", 1e3)]
    charts = [
        (
            "Loss",
            "nats per token, each step; the wide line below it is the run that nothing stopped",
            line_chart(steps, values("loss"), label="loss", marks=marks, under=below, from_zero=False),
        ),
        (
            "Speed",
            "tokens per second, all ranks",
            line_chart(steps, values("tokens_per_second"), label="tokens per second", marks=marks),
        ),
        (
            "Data stall",
            "milliseconds of a step spent waiting for data",
            line_chart(steps, values("data_stall", 1e3), label="data stall in ms", marks=marks, least_top=10.0),
        ),
        (
            "Checkpoint blocking",
            "milliseconds that a save stopped training for",
            line_chart(
                steps,
                blocking,
                label="checkpoint blocking in ms",
                marks=marks,
                stems=True,
                least_top=10.0,
            ),
        ),
    ]
    return (
        "<div class='charts'>"
        + "".join(
            f"<figure><figcaption><b>{escape(title)}</b> <span>{escape(note)}</span></figcaption>{svg}</figure>"
            for title, note, svg in charts
        )
        + "</div>"
    )


def _moved(report: Report) -> str:
    worlds, stages = report["world_sizes"], report["zero_stages"]
    changes = []
    if len(worlds) > 1:
        changes.append(" → ".join(map(str, worlds)) + " ranks")
    if len(stages) > 1:
        changes.append("stage " + " → ".join(map(str, stages)))
    return "resumed" + (": " + ", ".join(changes) if changes else "")


def _documents(report: Report) -> str:
    documents = sorted(report["documents"], key=lambda one: one["model"] / one["bytes"])
    shown = [
        (
            one["name"],
            [(kind, one[key] / one["bytes"]) for kind, key in DOTS],
        )
        for one in documents[:40]
    ]  # fmt: skip
    legend = "".join(
        f"<span><i class='dot {kind}'></i>{name}</span>"
        for (kind, _), name in zip(DOTS[::-1], bits(report), strict=True)
    )
    wins = sum(one["model"] < one["primed"] for one in documents)
    note = (
        f"{len(documents)} documents, {report['heldout_bytes']:,} bytes, none of them trained on; each alone. "
        f"The model needs fewer bits for {wins} than zstd that has read the training text. "
        "Its bits are −log₂ p of every token."
    )
    return (
        f"<section><h2>Held-out documents, bits per byte</h2><p class='note'>{escape(note)}</p>"
        f"<div class='legend'>{legend}</div>{dots_by_row(shown, unit='bits per byte', cap=MOST_BITS)}</section>"
    )


def _completions(report: Report) -> str:
    inner = "".join(
        f"<figure><figcaption>{escape(one['name'])}</figcaption><pre><span class='prompt'>"
        f"{escape(one['prompt'])}</span><span class='made'>{escape(one['text'])}</span></pre></figure>"
        for one in report["completions"]
    )
    note = "Prompts from documents that were not trained on, in grey, and what the model went on with."
    return f"<section><h2>Completions</h2><p class='note'>{note}</p><div class='texts'>{inner}</div></section>"


def _facts(report: Report) -> str:
    corpus, machine = report["corpus"], report["machine"]
    facts = {
        "steps": f"{report['steps']:,} ({report['tokens']:,} tokens)",
        "loss": f"{report['loss_first']:.3f} at first, {report['loss_last']:.3f} at last",
        "corpus": f"{corpus['what']}: {corpus['documents']:,} documents, {corpus['tokens']:,} tokens",
        **({"warnings": " ".join(report["warnings"])} if report["warnings"] else {}),
        "checkpoints": ", ".join(
            f"{one['step']} ({one['world_size']} ranks, stage {one['zero_stage']})" for one in report["checkpoints"]
        ),
        "order hash, planned": report["order_hash_planned"],
        "order hash, delivered": report["order_hash_delivered"],
        "time": ", ".join(f"{act} {seconds:.0f} s" for act, seconds in report["acts"].items())
        + f"; {report['wall_seconds']:.0f} s in all, {report['cpu_seconds']:.0f} s of CPU time",
        "machine": f"{machine['processor']}, {machine['cores']} cores"
        + "".join(f", {name}" for name in machine["gpus"]),
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        "source": report["source"],
        "store": report["store"],
    }
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    return f"<section><h2>Facts</h2><table class='facts'>{rows}</table></section>"
