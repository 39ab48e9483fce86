"""Evaluation: F16 of `fmscale bench life`: tasks equal to lm-eval's per document, and faster than its HF backend.

`python -m benchmarks.life_evaluate [--quick]` measures it alone.

A model of random weights is exported to Hugging Face's form. lm-eval reads that folder and the same documents from JSON
Lines, in a process of its own; runs of both alternate, each in one thread, and CPU seconds are compared after results.
"""

import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.harness import ROOT, Claim

PEERS = ROOT / ".venv-life" / "bin" / "python"
SHAPES = {"few_shot": (5, 10), "plain": (0, 24), "letters": (5, 0)}
"""Examples before a question, and words of a choice: 0 is a letter."""
TOLERANCE = 1e-4
"""Largest difference of log-likelihoods, in nats, which are tens to hundreds."""
BATCHES = (1, 8)
WORDS = ["the", "quick", "brown", "fox", "naïve", "Document", "lazy", "dogs", "jumps", "over", "12", "3"]


def make(folder: Path, quick: bool) -> tuple[str, Path]:
    """Address of a run of random weights, and the folder of its export."""
    from fmscale.config import ModelConfig
    from tests.infer.trained_run import save_run, store_texts

    url = store_texts(folder, tokenizer="bpe:320")
    size: dict[str, Any] = {"num_layers": 2, "dim": 128} if quick else {"num_layers": 6, "dim": 192}
    config = ModelConfig(num_heads=4, num_kv_heads=2, max_seq_len=768, init_std=0.08, **size)
    vocabulary = len(json.loads(next(Path(url).glob("tokenizers/*.json")).read_bytes())["model"]["vocab"])
    save_run(url, "run", (1,), config, vocab_size=vocabulary)
    export = [
        str(Path(sys.executable).with_name("fmscale")),
        "checkpoint",
        "export",
        f"{url}#run",
        "--to",
        str(folder / "hf"),
    ]
    subprocess.run(export, check=True, capture_output=True)
    return f"{url}#run", folder / "hf"


def words(draw: random.Random, count: int) -> str:
    """So many words of the tokenizer's corpus."""
    return " ".join(draw.choice(WORDS) for _ in range(count))


def write_tasks(folder: Path, documents: int) -> list[str]:
    """The same tasks for both: NAME.yaml for fmscale, lm/NAME.yaml for lm-eval."""
    (folder / "lm").mkdir(parents=True)
    draw = random.Random(7)
    names = []
    for shape, (shots, length) in SHAPES.items():
        names.append(shape)
        rows = []
        for _ in range(documents):
            options = [words(draw, draw.randint(3, length)) for _ in range(4)] if length else ["A", "B", "C", "D"]
            rows.append({"q": words(draw, draw.randint(20, 60)), "options": options, "a": draw.randrange(4)})
        lm = {
            "doc_to_text": "{{q}}",
            "doc_to_choice": "options",
            "doc_to_target": "a",
            "output_type": "multiple_choice",
        }
        ours = {"kind": "choice", "text": "{{ q }}", "choices": "{{ options }}", "target": "{{ a }}"}
        if shots:
            pool = [{"q": words(draw, 20), "options": ["the", "fox", "x", "y"], "a": 1} for _ in range(shots)]
            _lines(folder / f"{shape}_pool.jsonl", pool)
            ours["examples"] = {"count": shots, "draw": "first", "documents": f"{shape}_pool.jsonl"}  # type: ignore[assignment]
        _write(folder, shape, ours, lm, rows, shots, ("acc", "acc_norm", "acc_bytes"))
    rows = [{"q": words(draw, draw.randint(5, 30)), "a": words(draw, 1)} for _ in range(documents // 4)]
    ours = {"kind": "generate", "text": "{{ q }}", "target": "{{ a }}", "max_tokens": 16, "stop": [" f", "\n"]}  # type: ignore[dict-item]
    ours["answer"] = {"strip": False, "ignore_case": True, "ignore_punctuation": True}  # type: ignore[assignment]
    lm = {"doc_to_text": "{{q}}", "doc_to_target": "{{a}}", "output_type": "generate_until"}
    lm["generation_kwargs"] = {"until": [" f", "\n"], "max_gen_toks": 16, "do_sample": False}  # type: ignore[assignment]
    _write(folder, "generated", ours, lm, rows, 0, ("exact_match",))
    rows = [{"t": words(draw, draw.randint(1, 900)) + "  é\n"} for _ in range(documents // 4)]
    lm = {"doc_to_text": "", "doc_to_target": "{{t}}", "output_type": "loglikelihood_rolling"}
    perplexities = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    _write(folder, "rolling", {"kind": "rolling", "text": "{{ t }}"}, lm, rows, 0, perplexities)
    return [*names, "generated", "rolling"]


def _write(folder: Path, name: str, ours: Any, lm: Any, rows: Any, shots: int, metrics: tuple[str, ...]) -> None:
    _lines(folder / f"{name}.jsonl", rows)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**ours, "documents": f"{name}.jsonl"}))
    files = {"test": str(folder / f"{name}.jsonl"), **({"train": str(folder / f"{name}_pool.jsonl")} if shots else {})}
    few = {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}, "num_fewshot": shots} if shots else {}
    exact = {"ignore_case": True, "ignore_punctuation": True} if name == "generated" else {}
    text = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test",
        **few, **lm,
        "metric_list": [{"metric": metric, **exact} for metric in metrics],
    }  # fmt: skip
    (folder / "lm" / f"{name}.yaml").write_text(yaml.safe_dump(text))


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def cpu_seconds() -> float:
    """CPU seconds of this process and of those that it has ended, which render templates."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def differences(ours: Any, peer: dict[str, Any]) -> list[str]:
    """Documents and metrics that differ."""
    found = []
    for number, (mine, theirs) in enumerate(zip(ours.documents, peer["documents"], strict=True)):
        if "picked" in mine:
            nats = [float(one[0]) for one in theirs["replies"]]
            apart = max(abs(a - b) for a, b in zip(mine["nats"], nats, strict=True))
            greedy = [one[1] in (True, "True") for one in theirs["replies"]] == mine["greedy"]
            same = apart <= TOLERANCE and greedy
            same &= all(theirs[name] == float(mine["picked"][name] == mine["gold"]) for name in mine["picked"])
        elif "tokens" in mine:
            same = abs(mine["nats"] - float(theirs["replies"][0])) <= TOLERANCE * max(1.0, mine["tokens"] / 10)
        else:
            same = mine["replies"] == theirs["replies"] and float(mine["right"]) == theirs["exact_match"]
        found += [] if same else [f"document {number}: {mine} against {theirs}"]
    for metric in ours.metrics:
        if metric.name in peer["metrics"]:
            wanted = peer["metrics"][metric.name]
            found += [] if abs(metric.value - wanted) <= 1e-6 * abs(wanted) else [f"{metric} against {wanted}"]
    return found


def rows(quick: bool, peer: Path = PEERS) -> list[dict[str, Any]]:
    """A row a task: differences from lm-eval, CPU seconds of both at lm-eval's best batch size, and their ratio."""
    from fmscale.infer.load import open_trained
    from fmscale.infer.tasks import evaluate_task, load_task

    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        address, export = make(folder, quick)
        tasks = write_tasks(folder / "tasks", 16 if quick else 32)
        trained = open_trained(address)
        environment = {
            "PATH": "/usr/bin:/bin",
            "HF_HUB_OFFLINE": "1",
            "HOME": name,
        }
        process = subprocess.Popen(
            [str(peer), "-P", str(ROOT / "benchmarks/peers/lm_eval_tasks.py"), str(export), str(folder / "tasks/lm")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip

        def ask(**job: Any) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            return answer

        def run(task: str) -> tuple[float, Any]:
            loaded = load_task(str(folder / "tasks" / f"{task}.yaml"))
            began = cpu_seconds()
            result = evaluate_task(trained, loaded, threads=1)
            return cpu_seconds() - began, result

        for task in tasks:
            _, ours = run(task)
            theirs = {batch: ask(task=task, batch=batch) for batch in BATCHES}
            best = min(BATCHES, key=lambda batch: theirs[batch]["seconds"])
            through = ask(task=task, adapter={"address": address, "python": sys.executable, "threads": 1})
            pairs = [(run(task)[0], ask(task=task, batch=best)["seconds"]) for _ in range(1 if quick else 3)]
            results.append({
                "task": task,
                "documents": len(ours.documents),
                "differences": differences(ours, theirs[1]),
                "through_adapter": differences(ours, through),
                "lm_eval_batch": best,
                "ours_cpu_s": statistics.median(a for a, _ in pairs),
                "lm_eval_cpu_s": statistics.median(b for _, b in pairs),
                "ratio": statistics.median(b / a for a, b in pairs),
            })  # fmt: skip
            print(json.dumps(results[-1], ensure_ascii=False), file=sys.stderr, flush=True)
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    return results


def run(*, quick: bool = False, peers: Path = PEERS) -> list[dict[str, Any]]:
    """All claims, as in a results file."""
    claims = []
    for row in rows(quick, peers):
        task, wrong = row["task"], len(row["differences"]) + len(row["through_adapter"])
        what = f"{row['documents']} documents of the task {task}"
        claims.append(
            Claim(
                id=f"F16.{task}.equal", what=f"{what}: documents and metrics that differ from lm-eval's, by our tasks "
                "and by lm-eval's own through the adapter", unit="differences", ours=wrong, ratio=wrong, target="0",
                ok=wrong == 0, runs=[{"system": d, "value": 1} for d in row["differences"] + row["through_adapter"]],
            )
        )  # fmt: skip
        name = f"lm-eval hf, batch {row['lm_eval_batch']}"
        claims.append(
            Claim(
                id=f"F16.{task}.speed", what=f"{what}; lm-eval at its best batch of {BATCHES}", unit="CPU s",
                ours=row["ours_cpu_s"], peers={name: row["lm_eval_cpu_s"]}, ratio=row["ratio"],
                target=">= 1.5 x as fast as lm-eval", ok=row["ratio"] >= 1.5,
            )
        )  # fmt: skip
    return [asdict(claim) for claim in claims]


if __name__ == "__main__":
    print(json.dumps(run(quick="--quick" in sys.argv), indent=2, ensure_ascii=False))
