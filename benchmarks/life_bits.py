"""Bits of generation and of imports: F10 (same tokens at any batch), F11 (sampler against trainer) and F17 (imports).

`python -m benchmarks.life_bits [--quick]` measures them alone. transformers is in fmscale's own environment.
"""

import copy
import json
import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import ROOT, Claim
from benchmarks.life_sft import PEERS

VOCAB = 4096
MODEL: dict[str, Any] = {
    "num_layers": 4,
    "dim": 192,
    "num_heads": 6,
    "num_kv_heads": 2,
    "hidden_dim": 512,
    "tied": True,
}
LONG = 16_500
"""Tokens above 16,384, from which on a cache's capacity may change how a kernel divides the keys."""


def run(*, quick: bool = False, peers: Path = PEERS) -> list[dict[str, Any]]:
    """All claims, as in a results file."""
    torch.set_num_threads(1)
    return [asdict(claim) for claim in (*bits(quick=quick), *mismatch(quick=quick), *imports(quick=quick))]


def model_of(dtype: torch.dtype, longest: int, std: float) -> Any:
    """Random weights in a type."""
    from fmscale.config import ModelConfig
    from fmscale.models import build

    model = build(ModelConfig(**MODEL, max_seq_len=longest, init_std=std), vocab_size=VOCAB)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.to(dtype).eval()


def drawn_prompts(count: int) -> list[list[int]]:
    """Prompts of 5 to 60 tokens."""
    draw = torch.Generator().manual_seed(1)
    sizes = torch.randint(5, 61, (count,), generator=draw).tolist()
    return [torch.randint(VOCAB, (size,), generator=draw).tolist() for size in sizes]


def bits(*, quick: bool) -> list[Claim]:
    """F10: tokens and log-probs, to the bit, of other slots, another order, and a capacity above 16,384."""
    from fmscale.infer import Sampling, generate

    prompts, new = drawn_prompts(8 if quick else 32), 8 if quick else 32
    keys = list(range(len(prompts)))
    sampling = Sampling(temperature=0.9, top_p=0.95, seed=3)
    runs = []
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = model_of(dtype, LONG, 0.1)

        def said(order: list[int], slots: int, model: Any = model, longest: int = new, eos: Any = None) -> Any:
            """Completions by prompt; `longest` is the limit of the first prompt alone."""
            limits = [longest if i == 0 else new for i in order]
            found = generate(
                model, [prompts[i] for i in order], max_tokens=limits, sampling=sampling, logprobs=True, keys=order,
                eos=eos, slots=slots, threads=1,
            )  # fmt: skip
            return {i: (one.tokens, one.logprobs, one.drawn_logprobs) for i, one in zip(order, found, strict=True)}

        alone = said(keys, 1)
        ways = {"4 slots": said(keys, 4), "32 slots": said(keys, 32), "backwards, 5 slots": said(keys[::-1], 5)}
        eos = alone[0][0][3]  # ends the first prompt, for whose limit there is room
        ended = said(keys, 1, eos=eos)
        others = {how: (found, alone) for how, found in ways.items()}
        others[f"room for {LONG:,} tokens"] = (said(keys, 8, longest=LONG - 64, eos=eos), ended)
        for how, (found, wanted) in others.items():
            runs.append({"system": f"{name}, {how}", "value": sum(found[i] == wanted[i] for i in keys) / len(keys)})
    least = min(run["value"] for run in runs)
    return [
        Claim(
            id="F10.bits", what=f"completions of {len(prompts)} drawn prompts of 5 to 60 tokens, {new} new: equal "
            "tokens and log-probs, to the bit, to those of a slot; the least of all ways", unit="share", ours=least,
            ratio=least, target="1", ok=least == 1, runs=runs,
        )
    ]  # fmt: skip


def mismatch(*, quick: bool) -> list[Claim]:
    """F11: log-probs of drawn tokens as the sampler told them, against those of a packed forward of training: for
    random weights of the usual size, for larger ones, whose logits are as sharp as a trained model's, and for SmolLM2.
    """
    from fmscale.exchange.import_run import SHIPPED_FILE

    claims = []
    for name, dtype, most in (("fp32", torch.float32, 1e-5), ("bf16", torch.bfloat16, 2e-3)):
        models: dict[str, Callable[[], Any]] = {
            "usual": partial(model_of, dtype, 512, 0.02),
            "sharp": partial(model_of, dtype, 512, 0.1),
        }
        if (ROOT / ".weights" / SHIPPED_FILE).is_file():
            models["smollm2"] = partial(_smollm2_in, dtype)
        for kind, made in models.items():
            count, new = (4, 16) if quick or kind == "smollm2" else (32, 64)
            apart = _apart(made(), drawn_prompts(count), new)
            both = {"largest": float(apart.max()), "mean": float(apart.mean())}
            which = "largest" if name == "fp32" else "mean"
            claims.append(
                Claim(
                    id=f"F11.{name}.{kind}", what=f"log-probs of {count * new} drawn tokens, sampler against a packed "
                    f"forward of training, {name}, weights: {kind}; {which} difference", unit="nats", ours=both[which],
                    ratio=both[which], target=f"<= {most:g}", ok=both[which] <= most,
                    runs=[{"system": how, "value": each} for how, each in both.items()],
                )
            )  # fmt: skip
    return claims


@torch.no_grad()
def _apart(model: Any, prompts: list[list[int]], new: int) -> torch.Tensor:
    """Differences of all drawn tokens."""
    from fmscale.infer import Sampling, generate

    found = generate(
        model, prompts, max_tokens=new, sampling=Sampling(temperature=1.0, seed=5), logprobs=True, threads=1
    )
    rows = [[*prompt, *one.tokens] for prompt, one in zip(prompts, found, strict=True)]
    sizes = torch.tensor([0, *(len(row) - 1 for row in rows)], dtype=torch.int32)
    tokens = torch.cat([torch.tensor(row[:-1]) for row in rows])[None]
    positions = torch.cat([torch.arange(len(row) - 1) for row in rows])[None]
    hidden = model(tokens, positions_BT=positions, cu_seqlens=sizes.cumsum(0, dtype=torch.int32))
    logps = model.head(hidden).float().log_softmax(-1)[0]
    chosen = logps.gather(1, torch.cat([torch.tensor(row[1:]) for row in rows])[:, None])[:, 0]
    drawn = torch.cat([torch.arange(len(row) - 1) >= len(p) - 1 for row, p in zip(rows, prompts, strict=True)])
    told = torch.tensor([value for one in found for value in one.logprobs])
    apart: torch.Tensor = (chosen[drawn] - told).abs()
    return apart


@lru_cache
def smollm2() -> Any:
    """SmolLM2-135M-Instruct, imported from its GGUF file."""
    from fmscale.exchange.import_run import SHIPPED_FILE, import_run, open_source
    from fmscale.infer.load import open_trained
    from fmscale.store.open import open_store

    with tempfile.TemporaryDirectory(prefix="fmscale-bench-", dir=ROOT / "benchmarks") as url:
        import_run(open_source(str(ROOT / ".weights" / SHIPPED_FILE)), open_store(url), "base")
        return open_trained(f"{url}#base").model.eval()


def imports(*, quick: bool) -> list[Claim]:
    """F17: logits of imported models of every family against transformers, tensors of the way back, and SmolLM2."""
    from fmscale.exchange.import_run import SHIPPED_FILE
    from tests.models.test_families import FAMILIES, made

    with tempfile.TemporaryDirectory(prefix="fmscale-bench-", dir=ROOT / "benchmarks") as name:
        runs, back = [], []
        for number, family in enumerate(list(FAMILIES)[:: 3 if quick else 1]):
            folder = Path(name) / str(number)
            theirs = made(family)
            apart, equal = _imported(theirs, folder)
            runs.append({"system": family, "value": apart})
            back.append({"system": family, "value": equal})
        claims = [_logits("F17.families", "random models of each family", runs), _back("F17.back", back)]
        if (ROOT / ".weights" / SHIPPED_FILE).is_file():
            claims.append(_smollm2())
        else:
            reason = {"fmscale": "`make weights` has not run"}
            claims.append(Claim(id="F17.smollm2", what="not measured", unit="", ours=None, reasons=reason))
    return claims


@torch.no_grad()
def _imported(theirs: Any, folder: Path) -> tuple[float, float]:
    """Difference of logits, relative to the largest, of an import of this model; share of tensors, and of the small
    files, that come back as they were.
    """
    from typer.testing import CliRunner

    from fmscale.cli.main import build_app
    from fmscale.infer.load import open_trained
    from tests.exchange.foreign import tensors_of

    source, url, out = folder / "source", str(folder / "store"), folder / "out"
    theirs.save_pretrained(source)
    _tokenizer(theirs.config.vocab_size).save_pretrained(source)
    app, cli = build_app(), CliRunner()
    for words in (["import", str(source), "--store", url, "--run", "base"],
                  ["checkpoint", "export", f"{url}#base", "--to", str(out)]):  # fmt: skip
        done = cli.invoke(app, words)
        if done.exit_code:
            raise RuntimeError(done.output)
    model = open_trained(f"{url}#base").model
    ids = torch.randint(theirs.config.vocab_size, (1, 40), generator=torch.Generator().manual_seed(2))
    wanted = theirs(ids).logits
    apart = float((model.head(model(ids)) - wanted).abs().max() / wanted.abs().max())
    before, after = tensors_of(source), tensors_of(out)
    same = [name in after and _same(after[name], tensor) for name, tensor in before.items()]
    same += [before.keys() == after.keys()]
    same += [
        (out / path.name).is_file() and (out / path.name).read_bytes() == path.read_bytes()
        for path in source.iterdir()
        if not path.name.startswith("model")
    ]
    return apart, sum(same) / len(same)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def _tokenizer(vocabulary: int) -> Any:
    """A tokenizer with so many ids."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    library: Any = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t0"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    kind: Any = transformers.PreTrainedTokenizerFast
    return kind(tokenizer_object=library, eos_token="t2")


@torch.no_grad()
def _smollm2() -> Claim:
    """SmolLM2-135M-Instruct from its GGUF file, against transformers' own reading of that file, kept as a fixture."""
    golden = json.loads((ROOT / "tests" / "fixtures" / "smollm2.json").read_text())
    model = smollm2()
    shown = model.head(model(torch.tensor([golden["ids"]])))[0][:, range(0, 49152, 1024)]
    apart = float((shown - torch.tensor(golden["logits"])).abs().max() / golden["scale"])
    return _logits("F17.smollm2", "SmolLM2-135M-Instruct from GGUF", [{"system": "SmolLM2", "value": apart}])


def _smollm2_in(dtype: torch.dtype) -> Any:
    return copy.deepcopy(smollm2()).to(dtype)


def _logits(id: str, what: str, runs: list[dict[str, Any]]) -> Claim:
    worst = max((run["value"] for run in runs), default=math.nan)
    return Claim(
        id=id, what=f"logits of imports against transformers, {what}: largest difference by the largest logit",
        unit="of scale", ours=worst, ratio=worst, target="<= 1e-4", ok=worst <= 1e-4, runs=runs,
    )  # fmt: skip


def _back(id: str, runs: list[dict[str, Any]]) -> Claim:
    least = min(run["value"] for run in runs)
    return Claim(
        id=id, what="tensors and small files that an export gives back to the bit, names and types too", unit="share",
        ours=least, ratio=least, target="1", ok=least == 1, runs=runs,
    )  # fmt: skip


MEASURES: dict[str, Callable[..., list[Claim]]] = {"F10": bits, "F11": mismatch, "F17": imports}

if __name__ == "__main__":
    torch.set_num_threads(1)
    quick = "--quick" in sys.argv
    chosen = [word for word in sys.argv[1:] if word in MEASURES] or list(MEASURES)
    print(json.dumps([asdict(claim) for name in chosen for claim in MEASURES[name](quick=quick)], indent=2))
