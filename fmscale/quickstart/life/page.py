"""The page of the tour: accuracies with intervals, losses, answers side by side, commands."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fmscale.report import page as parts
from fmscale.report.charts import Line, line_chart

TITLES = {"pretrained": "Pretraining", "sft": "Fine-tuning", "lora": "LoRA", "dpo": "DPO"}
ASKED = {"plain": "asked plainly", "direct": "“answer only”", "steps": "“step by step”"}


def render(report: Mapping[str, Any], curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The page of a report; `curves` has the records of each run's steps."""
    accuracy = report["accuracy"]
    direct, steps = (accuracy["sft"][way] for way in ("direct", "steps"))
    headline = f"The same weights: {direct['value']:.0%} at once, {steps['value']:.0%} step by step"
    size = report["runs"]["pretrained"]["parameters"]
    lead = (
        f"A model of {size:,} parameters that learnt sums about fruit from nothing, "
        f"then to answer in a chat, and then to prefer worked answers: {report['wall_seconds']:.0f} s in all."
    )
    return parts.document(
        "fmscale: the life of a model",
        [
            parts.header("fmscale quickstart life", headline, lead),
            _tiles(report),
            parts.section(
                "Right answers",
                _table(accuracy),
                note=f"Of {steps['n']} problems that no run has seen, with Wilson's 95 % interval.",
            ),
            parts.section("Losses", parts.figures(list(_charts(curves)))),
            parts.section("Answers side by side", _samples(report["samples"])),
            parts.section("What was typed", _commands(report["commands"])),
        ],
    )


def _tiles(report: Mapping[str, Any]) -> str:
    runs, accuracy = report["runs"], report["accuracy"]
    small, whole = runs["lora"], runs["sft"]
    plain = [f"{accuracy[run]['plain']['value']:.0%}" for run in ("sft", "dpo")]
    return parts.tiles(
        [
            ("LoRA, trained weights", f"{small['parameters']:,}", f"of {whole['parameters']:,} in full fine-tuning"),
            (
                "a checkpoint of the LoRA",
                f"{small['bytes'] / 1000:,.0f} kB",
                f"the full one has {whole['bytes'] / 1000:,.0f} kB",
            ),
            ("asked plainly, before and after DPO", " → ".join(plain), "right answers"),
            ("CPU time", f"{report['cpu_seconds']:.0f} s", "all processes"),
        ]
    )


def _table(accuracy: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    def cell(found: Mapping[str, Any]) -> str:
        return f"{found['value']:.1%} <span class='note'>{found['low']:.1%} – {found['high']:.1%}</span>"

    rows = [(TITLES[run], [cell(ways[way]) for way in ASKED]) for run, ways in accuracy.items()]
    return parts.table(list(ASKED.values()), rows)


def _charts(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, str, str]]:
    notes = {"dpo": "−log σ of the margin, a pair"}
    return [
        (
            TITLES[run],
            notes.get(run, "nats a token"),
            line_chart(
                [Line(xs=[r["step"] for r in records], ys=[float(r["loss"]) for r in records])],
                label="loss",
                from_zero=False,
            ),
        )
        for run, records in curves.items()
    ]


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    out = []
    for sample in samples:
        rows = "".join(
            f"<tr><th>{escape(_who(who))}</th><td>{'✓' if said['right'] else '✗'} {escape(said['text'])}</td></tr>"
            for who, said in sample["said"].items()
        )
        asked = f"{escape(sample['question'])} <b>{escape(str(sample['target']))}</b>"
        out.append(f"<figure><figcaption>{asked}</figcaption><table class='facts'>{rows}</table></figure>")
    return f"<div class='texts'>{''.join(out)}</div>"


def _who(key: str) -> str:
    run, _, way = key.partition("/")
    return f"{TITLES[run]}, {ASKED[way]}"


def _commands(commands: Sequence[Mapping[str, Any]]) -> str:
    return parts.facts({f"{one['title']}, {one['seconds']:.0f} s": one["command"] for one in commands})
