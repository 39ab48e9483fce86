"""A run with random weights and a BPE tokenizer, and a folder of tasks."""

from pathlib import Path

from fmscale.config import ModelConfig
from tests.infer.trained_run import save_run, store_texts

MODEL = ModelConfig(num_layers=2, dim=48, num_heads=4, num_kv_heads=2, max_seq_len=320, init_std=0.2, tied=True)


def task_run(folder: Path) -> str:
    """Address of the run, in a store in `folder`."""
    url = store_texts(folder, tokenizer="bpe:300")
    save_run(url, "run", (5,), MODEL, vocab_size=304)
    save_run(url, "other", (7,), MODEL, vocab_size=304)
    return f"{url}#run"


def write_task(folder: Path, name: str, text: str, **files: str) -> str:
    """Path of a task, with JSON Lines beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(text)
    for file, lines in files.items():
        (folder / f"{file}.jsonl").write_text(lines)
    return str(path)
