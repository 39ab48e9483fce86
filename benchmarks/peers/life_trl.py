"""Preference pairs by TRL, for benchmarks/life_preferences.py; runs in the peers' environment, without fmscale.

python life_trl.py make FOLDER SHAPE COUNT     a random Llama in FOLDER/base, and random pairs in FOLDER/pairs.json
python life_trl.py dpo FOLDER online|precomputed STEPS PAIRS    steps of DPO; JSON of CPU seconds and losses
"""

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

EOS, RATE = 1, 1e-4


def make(folder: Path, shape: dict[str, Any], count: int) -> None:
    """Write base and pairs: prompts of 8 to 64 tokens, answers of 8 to 96 with their EOS."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**shape, initializer_range=0.05, max_position_embeddings=2048, pad_token_id=0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "base")
    draw = torch.Generator().manual_seed(1)

    def tokens(least: int, most: int) -> list[int]:
        size = int(torch.randint(least, most, (1,), generator=draw))
        found: list[int] = torch.randint(2, shape["vocab_size"], (size,), generator=draw).tolist()
        return found

    pairs = [(tokens(8, 64), [*tokens(7, 95), EOS], [*tokens(7, 95), EOS]) for _ in range(count)]
    (folder / "pairs.json").write_text(json.dumps(pairs))


def dpo(folder: Path, mode: str, steps: int, pairs: int) -> dict[str, Any]:
    """CPU seconds of each step after the first, those of the preparation, and losses."""
    torch.set_num_threads(1)
    import datasets
    import tokenizers
    import transformers
    import trl

    base: Any = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    words = {"<pad>": 0, "<eos>": EOS, **{f"t{i}": i for i in range(2, base.config.vocab_size)}}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    kind: Any = transformers.PreTrainedTokenizerFast
    tokenizer = kind(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")

    def text(ids: list[int]) -> str:
        return " ".join(f"t{i}" for i in ids if i != EOS)

    rows = [
        {"prompt": text(prompt), "chosen": " " + text(chosen), "rejected": " " + text(rejected)}
        for prompt, chosen, rejected in json.loads((folder / "pairs.json").read_text())
    ]
    ends: list[float] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.process_time())

    began = time.process_time()
    trainer = trl.DPOTrainer(
        model=base, processing_class=tokenizer, train_dataset=datasets.Dataset.from_list(rows), callbacks=[Clock()],
        args=trl.DPOConfig(
            output_dir=str(folder / mode), per_device_train_batch_size=pairs, max_steps=steps, learning_rate=RATE,
            lr_scheduler_type="constant", warmup_steps=0, use_cpu=True, bf16=False, gradient_checkpointing=False,
            report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True, max_length=None, beta=0.1,
            precompute_ref_log_probs=mode == "precomputed", precompute_ref_batch_size=pairs, max_grad_norm=1.0,
        ),
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"steps": [b - a for a, b in itertools.pairwise(ends)], "before": ends[0] - began, "losses": losses}


if __name__ == "__main__":
    verb, where, *rest = sys.argv[1:]
    if verb == "make":
        make(Path(where), json.loads(rest[0]), int(rest[1]))
        print("{}")
    else:
        print(json.dumps(dpo(Path(where), rest[0], *map(int, rest[1:]))))
