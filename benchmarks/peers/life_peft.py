"""LoRA by PEFT and transformers, for benchmarks/life_adapters.py; runs in the peers' environment, without fmscale.

python life_peft.py make FOLDER SHAPE     a random Llama in FOLDER/base, and untrained adapters in FOLDER/KIND
python life_peft.py train FOLDER KIND STEPS ROWS T    steps of AdamW; JSON of their losses, CPU seconds and peak memory
python life_peft.py logits FOLDER ADAPTER OUT         logits of FOLDER/base with an adapter
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

KINDS: dict[str, dict[str, Any]] = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
RATE, BETAS = 1e-3, (0.9, 0.95)


def make(folder: Path, shape: dict[str, Any]) -> None:
    """Write the base, and adapters of each kind: untrained ones, and NAME.random with random values."""
    import peft
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**shape, initializer_range=0.05, max_position_embeddings=2048)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "base")
    for kind, settings in KINDS.items():
        for suffix, init in (("", True), (".random", False)):
            model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
            lora = peft.LoraConfig(
                r=16,
                lora_alpha=32,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
                init_lora_weights=init,
                **settings,
            )
            peft.get_peft_model(model, lora).save_pretrained(folder / f"{kind}{suffix}")


def rows(step: int, count: int, length: int, vocabulary: int) -> torch.Tensor:
    """Tokens of a step, one more than the model reads."""
    return torch.randint(vocabulary, (count, length + 1), generator=torch.Generator().manual_seed(step))


def _adapted(folder: Path, adapter: Path, *, trainable: bool) -> Any:
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, adapter, is_trainable=trainable)


def train(folder: Path, kind: str, steps: int, count: int, length: int) -> dict[str, Any]:
    """Losses, CPU seconds a step after the first, and peak memory in MB."""
    torch.set_num_threads(1)
    import peft  # noqa: F401
    import transformers  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = _adapted(folder, folder / kind, trainable=True).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=BETAS, weight_decay=0.0, fused=True)
    losses, begin = [], 0.0
    for step in range(steps):
        begin = time.process_time() if step == 1 else begin
        tokens = rows(step, count, length, model.config.vocab_size)
        logits = model(tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    seconds = (time.process_time() - begin) / (steps - 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"losses": losses, "seconds": seconds, "peak": peak / 1024, "grown": (peak - before) / 1024}


def logits(folder: Path, adapter: Path, out: Path) -> None:
    """Write the logits of the tokens of step 0."""
    model = _adapted(folder, adapter, trainable=False).eval()
    with torch.no_grad():
        save_file({"logits": model(rows(0, 1, 64, model.config.vocab_size)).logits.contiguous()}, out)


if __name__ == "__main__":
    verb, folder, *words = sys.argv[1:]
    if verb == "make":
        make(Path(folder), json.loads(words[0]))
        print("{}")
    elif verb == "train":
        print(json.dumps(train(Path(folder), words[0], *map(int, words[1:]))))
    else:
        logits(Path(folder), Path(words[0]), Path(words[1]))
        print(json.dumps({"tensors": len(load_file(Path(words[1])))}))
