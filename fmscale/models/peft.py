"""Adapters in the format of the library PEFT: names and config, both ways."""

from collections.abc import Iterable, Mapping
from math import sqrt
from typing import Any

from fmscale.config.adapter import ALL_LINEAR, LoraConfig
from fmscale.config.checks import InvalidField
from fmscale.config.model import ModelConfig
from fmscale.errors import ConfigError
from fmscale.models.hf import hf_names
from fmscale.models.lora import in_block

PREFIX = "base_model.model."
ENDS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
"""Names of an adapter's parameters: ours -> PEFT's."""
OFF: dict[str, tuple[Any, ...]] = {
    "fan_in_fan_out": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    **dict.fromkeys(("modules_to_save", "layer_replication", "target_parameters"), (None, [])),
    **dict.fromkeys(("trainable_token_indices", "alora_invocation_tokens", "monteclora_config"), (None, [], {})),
    **dict.fromkeys(("use_qalora", "use_bdlora", "kasa_config", "velora_config", "arrow_config"), (None, False)),
    # The others change the base: LoftQ, PiSSA, OLoRA, CorDA, LoRA-GA.
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}
"""Settings of PEFT that compute something else than this adapter -> their values that do not; a missing key is off."""


def peft_names(model: ModelConfig, targets: Iterable[str], kind: str) -> dict[str, str]:
    """Every parameter of the adapter around the layers `targets`: our name -> PEFT's. Raises ConfigError for a layer
    that Hugging Face's model does not have.
    """
    theirs = hf_names(model)
    parts = [part for part in ENDS if part != "magnitude" or kind == "dora"]
    names: dict[str, str] = {}
    for target in targets:
        if f"{target}.weight" not in theirs:
            raise ConfigError("Hugging Face's model has no such layer", found=target, remedy="Merge the adapter.")
        layer = PREFIX + theirs[f"{target}.weight"].removesuffix(".weight")
        names |= {f"{target}.{part}": f"{layer}.{ENDS[part]}" for part in parts}
    return names


def peft_config(adapter: LoraConfig, model: ModelConfig, targets: Iterable[str], base: str) -> dict[str, Any]:
    """The adapter_config.json with which PEFT loads the adapter; `base` is PEFT's name of the base."""
    layers = [hf_names(model)[f"{target}.weight"].removesuffix(".weight") for target in targets]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.kind == "rslora",
        "use_dora": adapter.kind == "dora",
        "target_modules": _short(layers, hf_names(model).values()),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _short(layers: list[str], all_names: Iterable[str]) -> list[str]:
    """Last parts of the names, if these name no other layer; else the whole names, which PEFT takes too."""
    ends = sorted({name.rpartition(".")[2] for name in layers})
    named = {name for each in all_names if (name := each.removesuffix(".weight")).rpartition(".")[2] in ends}
    return ends if named == set(layers) else sorted(layers)


def from_peft_config(config: Mapping[str, Any], targets: Iterable[str], layers: Iterable[str]) -> LoraConfig:
    """The adapter that an adapter_config.json describes, around `targets` of the model's `layers`, which the tensors
    tell. Raises ConfigError for another method of PEFT, or a setting that this adapter lacks.
    """
    if config.get("peft_type") != "LORA":
        remedy = "Its adapters LORA are read, with use_rslora and use_dora."
        raise ConfigError(
            "The adapter is of another method", found=f"peft_type {config.get('peft_type')}", remedy=remedy
        )
    for name, values in OFF.items():
        if name in config and config[name] not in values:
            raise ConfigError(
                f"The adapter has what adapters here lack: {name}",
                found=config[name],
                remedy="Merge it by PEFT (merge_and_unload), and import the model.",
            )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    patterns = {"rank_pattern": rank, "alpha_pattern": alpha}
    for name, value in patterns.items():
        if other := {key: each for key, each in (config.get(name) or {}).items() if each != value}:
            remedy = "Merge it by PEFT (merge_and_unload), and import the model."
            raise ConfigError(f"The adapter's layers differ in their {name}", found=other, remedy=remedy)
    try:
        rank, alpha = int(rank or 0), float(alpha or 0.0)
        dora, rslora = bool(config.get("use_dora")), bool(config.get("use_rslora"))
        # DoRA here has the scale alpha / rank; both at once is another alpha.
        alpha = alpha * sqrt(rank) if dora and rslora else alpha
        kind: Any = "dora" if dora else "rslora" if rslora else "lora"
        dropout = float(config.get("lora_dropout") or 0.0)
        return LoraConfig(kind=kind, rank=rank, alpha=alpha, targets=_patterns(targets, layers), dropout=dropout)
    except (InvalidField, TypeError, ValueError) as error:
        found, remedy = f"adapter_config.json: {error}", "Is it a config of PEFT?"
        raise ConfigError("The config of the adapter cannot be used", found=found, remedy=remedy) from error


def _patterns(targets: Iterable[str], layers: Iterable[str]) -> tuple[str, ...]:
    """The shortest `adapter.targets` that names exactly these layers."""
    chosen, every = set(targets), set(layers)
    if chosen == every:
        return (ALL_LINEAR,)
    inside = {in_block(name) for name in chosen}
    same = {name for name in every if in_block(name) in inside} == chosen
    return tuple(sorted(inside if same else chosen))
