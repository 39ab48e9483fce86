"""LoRA by PEFT and transformers, for benchmarks/life_adapters.py; runs in the peers' environment, without fmscale.

python life_peft.py make FOLDER SHAPE     a random Llama in FOLDER/base, and untrained adapters in FOLDER/KIND
python life_peft.py train FOLDER KIND STEPS mixed|whole   steps of AdamW; JSON of losses, CPU seconds, peak memory
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
            adapted = peft.get_peft_model(model, lora)
            for name, parameter in adapted.named_parameters():
                if suffix and "lora_B" in name:
                    # PEFT's random values change the weights by 55 to 220 %, and its own fp32 is then 2e-5 from fp64
                    parameter.data.mul_(0.1)
            adapted.save_pretrained(folder / f"{kind}{suffix}")


def documents(step: int, lengths: str, vocabulary: int) -> list[torch.Tensor]:
    """Documents of a step, with a token more than the model reads: `whole`, 2 of 512 tokens, or `mixed`, 8 of lengths
    as chats have them (log-normal, 128 in the middle, at most 512).
    """
    generator = torch.Generator().manual_seed(step)
    drawn = (torch.randn(8, generator=generator) * 0.8).exp() * 128
    sizes = [512, 512] if lengths == "whole" else drawn.clamp(16, 512).int().tolist()
    return [torch.randint(vocabulary, (size + 1,), generator=generator) for size in sizes]


def _adapted(folder: Path, adapter: Path, *, trainable: bool) -> Any:
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, adapter, is_trainable=trainable)


def train(folder: Path, kind: str, steps: int, lengths: str) -> dict[str, Any]:
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
        parts = documents(step, lengths, model.config.vocab_size)
        tokens = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=-100)
        mask = (tokens[:, :-1] != -100).long() if lengths == "mixed" else None
        logits = model(tokens[:, :-1].clamp_min(0), attention_mask=mask, use_cache=False).logits
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
        [tokens, _] = documents(0, "whole", model.config.vocab_size)
        save_file({"logits": model(tokens[None, :64]).logits.contiguous()}, out)


if __name__ == "__main__":
    verb, folder, *words = sys.argv[1:]
    if verb == "make":
        make(Path(folder), json.loads(words[0]))
        print("{}")
    elif verb == "train":
        print(json.dumps(train(Path(folder), words[0], int(words[1]), words[2])))
    else:
        logits(Path(folder), Path(words[0]), Path(words[1]))
        print(json.dumps({"tensors": len(load_file(Path(words[1])))}))
