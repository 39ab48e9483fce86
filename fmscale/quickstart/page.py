"""report.html: a self-contained file, made from report.json and the metrics of the steps."""

from collections.abc import Sequence
from html import escape
from typing import Any

from fmscale.quickstart.results import Report, bits, claims, same_loss, verdict
from fmscale.report import page as parts
from fmscale.report.charts import Line, dots_by_row, line_chart

MOST_BITS = 6.0
"""Right end of the scale of bits per byte: in a file of some dozen bytes gzip's header alone takes 10 and more."""
MOST_DOCUMENTS = 40
"""Most documents that are drawn."""
DOTS = (("gzip", "gzip"), ("xz", "xz"), ("primed", "primed"), ("fmscale", "model"))
"""Class of a dot in the drawing, and key of its bits in a document; the last dot is drawn on top."""

Records = Sequence[dict[str, Any]]


def render(report: Report, records: Records, unbroken: Records) -> str:
    """The page. `records`: metrics of each step, in order; `unbroken`: the metrics of the run without a stop."""
    lead = (
        f"A decoder of {report['parameters'] / 1e6:.1f} M parameters, trained from nothing on "
        f"{report['corpus']['what']} ({report['corpus']['bytes'] / 1e6:.1f} MB). Its loss is drawn over that of a run "
        f"that nothing stopped: they differ by {report['unbroken']['largest_difference']:.1e} at most. It stores text "
        f"that it never saw in {report['heldout_bits_per_byte']:.2f} bits per byte: {verdict(report)}."
    )
    body = [
        parts.header("fmscale quickstart", _headline(report), lead),
        _tiles(report),
        parts.section("What must come out", parts.claims(claims(report))),
        parts.section("The run", _charts(report, records, unbroken)),
        _documents(report),
        _completions(report),
        parts.section("Facts", parts.facts(_facts(report))),
    ]
    return parts.document(f"fmscale quickstart: {report['run']}", body)


def _headline(report: Report) -> str:
    worlds, stages = report["world_sizes"], report["zero_stages"]
    if len(worlds) < 2 and len(stages) < 2:
        return "Trained and measured"
    ranks = " to ".join(map(str, worlds))
    place = f"{ranks} ranks and ZeRO stage {' to '.join(map(str, stages))}"
    return f"Stopped, moved from {place}: {'the' if same_loss(report) else 'not the'} loss of an unbroken run"


def _tiles(report: Report) -> str:
    mine, *others = bits(report).items()
    unbroken, blocking = report["unbroken"], report["ckpt_blocking_seconds_max"]
    apart = f"apart at most, in {unbroken['steps']} steps"
    return parts.tiles(
        [
            ("loss, beside an unbroken run's", f"{unbroken['largest_difference']:.1e}", apart),
            ("checkpoint blocking", f"{blocking * 1e3:.0f} ms", "at most, in one step"),
            ("data stall", f"{report['data_stall_fraction']:.2%}", "of the time of all steps"),
            ("tokens/s", f"{report['tokens_per_second']:,.0f}", "all ranks, data and checkpoints included"),
            *(("held-out bits per byte", f"{value:.3f}", name) for name, value in (mine, *others)),
        ]
    )


def _charts(report: Report, records: Records, unbroken: Records) -> str:
    steps = [record["step"] for record in records]
    marks = [(step, _moved(report)) for step in report["resumed_at"]]
    losses = [float(record["loss"]) for record in unbroken]
    below = Line(xs=[record["step"] for record in unbroken], ys=losses, look="under")

    def chart(name: str, label: str, *under: Line, scale: float = 1.0, least: float = 0.0, **options: Any) -> str:
        """A line over the steps; values up to `least` count as 0."""
        values = [scale * float(record[name]) for record in records]
        shown = values if not least else [value if value > least else 0.0 for value in values]
        return line_chart([*under, Line(xs=steps, ys=shown)], label=label, marks=marks, **options)

    ms = {"scale": 1e3, "least_top": 10.0}
    return parts.figures(
        [
            (
                "Loss",
                "nats per token, each step; the wide line below it is the run that nothing stopped",
                chart("loss", "loss", below, from_zero=False),
            ),
            ("Speed", "tokens per second, all ranks", chart("tokens_per_second", "tokens per second")),
            (
                "Data stall",
                "milliseconds of a step spent waiting for data",
                chart("data_stall", "data stall in ms", **ms),
            ),
            (
                "Checkpoint blocking",
                "milliseconds that a save stopped training for",
                # The fence costs microseconds at every step: with `least` only saves are drawn.
                chart("ckpt_blocking", "checkpoint blocking in ms", least=0.1, stems=True, **ms),
            ),
        ]
    )


def _moved(report: Report) -> str:
    worlds, stages = report["world_sizes"], report["zero_stages"]
    changes = [" → ".join(map(str, worlds)) + " ranks"] if len(worlds) > 1 else []
    changes += ["stage " + " → ".join(map(str, stages))] if len(stages) > 1 else []
    return "resumed" + (": " + ", ".join(changes) if changes else "")


def _documents(report: Report) -> str:
    documents = sorted(report["documents"], key=lambda one: one["model"] / one["bytes"])
    rows = [
        (one["name"], [(kind, one[key] / one["bytes"]) for kind, key in DOTS]) for one in documents[:MOST_DOCUMENTS]
    ]
    legend = parts.legend([(kind, name) for (kind, _), name in zip(DOTS[::-1], bits(report), strict=True)])
    wins = sum(document["model"] < document["primed"] for document in documents)
    note = (
        f"{len(documents)} documents, {report['heldout_bytes']:,} bytes, none of them trained on; each alone. "
        f"The model needs fewer bits for {wins} than zstd that has read the training text. "
        "Its bits are −log₂ p of every token."
    )
    chart = dots_by_row(rows, unit="bits per byte", cap=MOST_BITS)
    return parts.section("Held-out documents, bits per byte", legend + chart, note=note)


def _completions(report: Report) -> str:
    inner = "".join(
        f"<figure><figcaption>{escape(text['name'])}</figcaption><pre><span class='prompt'>"
        f"{escape(text['prompt'])}</span><span class='made'>{escape(text['text'])}</span></pre></figure>"
        for text in report["completions"]
    )
    note = "Prompts from documents that were not trained on, in grey, and what the model went on with."
    return parts.section("Completions", f"<div class='texts'>{inner}</div>", note=note)


def _facts(report: Report) -> dict[str, str]:
    corpus, machine = report["corpus"], report["machine"]
    acts = ", ".join(f"{act} {seconds:.0f} s" for act, seconds in report["acts"].items())
    return {
        "steps": f"{report['steps']:,} ({report['tokens']:,} tokens)",
        "loss": f"{report['loss_first']:.3f} at first, {report['loss_last']:.3f} at last",
        "corpus": f"{corpus['what']}: {corpus['documents']:,} documents, {corpus['tokens']:,} tokens",
        **({"warnings": " ".join(report["warnings"])} if report["warnings"] else {}),
        "checkpoints": ", ".join(
            f"{one['step']} ({one['world_size']} ranks, stage {one['zero_stage']})" for one in report["checkpoints"]
        ),
        "order hash, planned": report["order_hash_planned"],
        "order hash, delivered": report["order_hash_delivered"],
        "time": f"{acts}; {report['wall_seconds']:.0f} s in all, {report['cpu_seconds']:.0f} s of CPU time",
        "machine": ", ".join([machine["processor"], f"{machine['cores']} cores", *machine["gpus"]]),
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        "source": report["source"],
        "store": report["store"],
    }
