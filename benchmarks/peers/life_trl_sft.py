"""Supervised fine-tuning by TRL, for benchmarks/life_sft.py; runs in the peers' environment, without fmscale.

python life_trl_sft.py make FOLDER SHAPE    a random Llama in FOLDER, with a tokenizer that has all its ids
python life_trl_sft.py sft FOLDER bfd|padded|plain ROWS LENGTH STEPS    steps on FOLDER/documents.json: `bfd` and
    `padded` by TRL, packed or not, `plain` by a bare loop over transformers with whole logits; JSON of real tokens and
    CPU seconds of the steps after the first, losses, and peak of memory
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

RATE = 1e-3
END = "<eos>"


def make(folder: Path, shape: dict[str, Any]) -> None:
    """Write model and tokenizer; the last id is the end token."""
    import tokenizers
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**shape, initializer_range=0.02)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words = {**{f"t{i}": i for i in range(shape["vocab_size"] - 1)}, END: shape["vocab_size"] - 1}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="t0"))
    kind: Any = transformers.PreTrainedTokenizerFast
    kind(tokenizer_object=plain, eos_token=END, pad_token=END).save_pretrained(folder)


def sft(folder: Path, packing: str, rows: int, length: int, steps: int) -> dict[str, Any]:
    """Train on the documents, which are lists of ids with their masks."""
    import transformers

    torch.set_num_threads(1)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    documents = json.loads((folder / "documents.json").read_text())
    run = plain if packing == "plain" else trl_steps
    tokens, ends, losses = run(model, folder, documents, packing, rows, length, steps)
    return {
        "tokens": sum(tokens[1:]),
        "cpu_seconds": ends[-1] - ends[0],
        "losses": losses,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


Result = tuple[list[int], list[float], list[float]]
"""Real tokens of each step, CPU seconds of the process at its end, its loss."""


def plain(model: Any, folder: Path, documents: Any, packing: str, rows: int, length: int, steps: int) -> Result:
    """A row of a whole document a step, by the loss of transformers."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    ends, losses, counted = [], [], []
    for ids, mask in documents[:steps]:
        tokens = torch.tensor([ids[:length]])
        labels = tokens.where(torch.tensor([mask[:length]]) == 1, -100)
        loss = model(tokens, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        ends.append(time.process_time())
        counted.append(tokens.numel())
    return counted, ends, losses


def trl_steps(model: Any, folder: Path, documents: Any, packing: str, rows: int, length: int, steps: int) -> Result:
    """The steps of SFTTrainer."""
    import datasets
    import transformers
    import trl

    ends: list[float] = []
    counted: list[int] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.process_time())

    trainer = trl.SFTTrainer(
        model=model, callbacks=[Clock()],
        processing_class=transformers.PreTrainedTokenizerFast.from_pretrained(folder),
        train_dataset=datasets.Dataset.from_list([{"input_ids": i, "completion_mask": m} for i, m in documents]),
        args=trl.SFTConfig(
            output_dir=str(folder / f"trl-{packing}"), use_cpu=True, bf16=False, max_length=length,
            packing=packing == "bfd", packing_strategy="bfd", completion_only_loss=True,
            per_device_train_batch_size=rows, max_steps=steps, learning_rate=RATE, lr_scheduler_type="constant",
            optim="adamw_torch_fused", weight_decay=0.0, max_grad_norm=1.0, gradient_checkpointing=False,
            logging_steps=1, save_strategy="no", report_to="none", seed=0, disable_tqdm=True,
            dataloader_num_workers=0, dataloader_pin_memory=False,
        ),
    )  # fmt: skip
    compute = trainer.compute_loss

    def counting(model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
        mask = inputs.get("attention_mask")
        counted.append(inputs["input_ids"].numel() if mask is None else int(mask.sum()))
        return compute(model, inputs, *rest, **options)

    trainer.compute_loss = counting
    trainer.train()
    return counted, ends, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    verb, where, *words = sys.argv[1:]
    if verb == "make":
        make(Path(where), json.loads(words[0]))
        print("{}")
    else:
        print(json.dumps(sft(Path(where), words[0], *map(int, words[1:]))))
