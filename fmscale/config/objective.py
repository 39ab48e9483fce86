"""The section `objective`: the loss that training minimises."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fmscale.config.checks import InvalidField, above_zero, at_least, not_empty


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    """Cross-entropy of each token, given the tokens of its document before it."""

    kind: ClassVar[str] = "next_token"


@dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """Direct preference optimisation over pairs (Rafailov et al., arXiv 2305.18290) and its variants."""

    kind: ClassVar[str] = "dpo"
    loss: Literal["sigmoid", "robust", "hinge", "sppo", "apo_zero", "apo_down"] = "sigmoid"
    """Function of the two log-ratios: sigmoid (DPO; with label_smoothing cDPO), robust (arXiv 2403.00409), hinge (SLiC,
    2305.10425), sppo (hard labels, 2405.00675), apo_zero and apo_down (2408.06266)."""
    beta: float = 0.1
    """Strength of the pull towards the reference."""
    label_smoothing: float = 0.0
    """Share of pairs whose order is taken to be wrong, for sigmoid and robust."""
    per: Literal["sequence", "token"] = "sequence"
    """Log-ratios of whole sequences, or divided by the number of their trained tokens."""
    reference: str = "model"
    """Origin of the reference's log-probs: model (a frozen copy of the first weights, beside the model), adapter_off
    (the model without its adapters), or RUN@STEP (the derived column `reference` of the dataset, made with that
    checkpoint by `fmscale dataset derive --column reference`)."""

    def __post_init__(self) -> None:
        above_zero(self, "beta")
        _check_reference(self.reference)
        if not 0 <= self.label_smoothing < 0.5:
            remedy = "Give a share below a half: 0.1 for a tenth."
            raise InvalidField("label_smoothing", "must lie in [0, 0.5)", found=self.label_smoothing, remedy=remedy)
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            remedy = "Give 0, or take loss: sigmoid or robust."
            raise InvalidField(
                "label_smoothing", f"has no meaning for loss {self.loss}", found=self.label_smoothing, remedy=remedy
            )


@dataclass(frozen=True, kw_only=True)
class IpoConfig:
    """Identity preference optimisation over pairs (Azar et al., arXiv 2310.12036): draws the margin of the log-ratios
    to 1 / (2 beta).
    """

    kind: ClassVar[str] = "ipo"
    beta: float = 0.1
    """Strength of the pull towards the reference; tau of the paper."""
    per: Literal["token", "sequence"] = "token"
    """Log-ratios divided by the number of trained tokens, as in the paper's experiments, or of whole sequences."""
    reference: str = "model"
    """Origin of the reference's log-probs, as for dpo."""

    def __post_init__(self) -> None:
        above_zero(self, "beta")
        _check_reference(self.reference)


@dataclass(frozen=True, kw_only=True)
class KtoConfig:
    """Kahneman-Tversky optimisation (Ethayarajh et al., arXiv 2402.01306): each side of a pair alone, against the mean
    divergence of the step.
    """

    kind: ClassVar[str] = "kto"
    beta: float = 0.1
    """Strength of the pull towards the reference."""
    desirable: float = 1.0
    """Weight of the chosen side."""
    undesirable: float = 1.0
    """Weight of the rejected side."""
    reference: str = "model"
    """Origin of the reference's log-probs: model or adapter_off, as for dpo. The mean divergence is of mismatched pairs
    that are made in the step, so no column has their log-probs."""

    def __post_init__(self) -> None:
        above_zero(self, "beta", "desirable", "undesirable")
        if self.reference not in ("model", "adapter_off"):
            remedy = "Take model or adapter_off: the reference also reads the mismatched pairs of each step."
            raise InvalidField("reference", "cannot be a column for kto", found=self.reference, remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class OrpoConfig:
    """Odds ratio preference optimisation over pairs (Hong et al., arXiv 2403.07691): the mean loss of the chosen tokens
    and the odds ratio of the pair, without a reference.
    """

    kind: ClassVar[str] = "orpo"
    weight: float = 0.1
    """Weight of the odds ratio; lambda of the paper."""

    def __post_init__(self) -> None:
        above_zero(self, "weight")


@dataclass(frozen=True, kw_only=True)
class SimpoConfig:
    """Simple preference optimisation over pairs (Meng et al., arXiv 2405.14734): mean log-probs, no reference."""

    kind: ClassVar[str] = "simpo"
    beta: float = 2.0
    """Factor of the mean log-probs."""
    margin: float = 1.0
    """Least difference of the two rewards; gamma of the paper."""

    def __post_init__(self) -> None:
        above_zero(self, "beta")
        at_least(self, 0.0, "margin")


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Scores of pairs and rankings, for a model with `score: true`."""

    kind: ClassVar[str] = "reward"
    loss: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    """bradley_terry: mean over all pairs of a ranking, as in InstructGPT (arXiv 2203.02155); plackett_luce: likelihood
    of the whole ranking."""
    margin: float = 0.0
    """Least difference of the scores of a pair, for bradley_terry."""

    def __post_init__(self) -> None:
        at_least(self, 0.0, "margin")
        if self.margin and self.loss != "bradley_terry":
            raise InvalidField("margin", f"has no meaning for loss {self.loss}", found=self.margin, remedy="Give 0.")


PreferenceConfig = DpoConfig | IpoConfig | KtoConfig | OrpoConfig | SimpoConfig
"""Objectives over pairs."""
ObjectiveConfig = NextTokenConfig | PreferenceConfig | RewardConfig
"""Our objectives."""


def _check_reference(reference: str) -> None:
    not_empty("reference", reference, "Name model, adapter_off, or RUN@STEP.")
    run, _, step = reference.partition("@")
    if reference not in ("model", "adapter_off") and not (run and step.isdecimal()):
        remedy = "Name model, adapter_off, or a checkpoint of the store as RUN@STEP."
        raise InvalidField("reference", "must name a step of a run", found=reference, remedy=remedy)
