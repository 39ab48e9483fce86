"""TRL's supervised fine-tuning, run in the environment of `make bench-life-env`: `python life_trl.py REQUEST.json`.

The request names a folder with a model, documents as token ids with masks, and the packing. Prints a line of JSON:
real tokens and CPU seconds of the steps after the first, the losses, and the peak of memory.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """CPU seconds of the process at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.process_time())


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Train as the request says."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=request["tokenizer"], eos_token=request["eos"], pad_token=request["eos"]
    )
    rows = Dataset.from_list([{"input_ids": ids, "completion_mask": mask} for ids, mask in request["documents"]])
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        packed = request["packing"] != "none"
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder, use_cpu=True, bf16=False, max_length=request["length"], packing=packed,
                packing_strategy=request["packing"] if packed else "bfd", completion_only_loss=True,
                per_device_train_batch_size=request["batch"], max_steps=request["steps"], learning_rate=request["lr"],
                lr_scheduler_type="constant", optim="adamw_torch_fused", weight_decay=0.0, max_grad_norm=1.0,
                gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to=[], seed=0,
                dataloader_num_workers=0, dataloader_pin_memory=False,
            ),
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[clock],
        )  # fmt: skip
        counted: list[int] = []
        loss = trainer.compute_loss

        def watch(model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
            mask = inputs.get("attention_mask")
            counted.append(int(mask.sum()) if mask is not None else inputs["input_ids"].numel())
            return loss(model, inputs, *rest, **options)

        trainer.compute_loss = watch
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "tokens": sum(counted[1:]),
        "cpu_seconds": clock.ends[-1] - clock.ends[0],
        "losses": losses,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
