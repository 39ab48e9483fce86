"""Rotary position embedding (Su et al., arXiv 2104.09864), half-split as in Hugging Face's Llama."""

import functools

import torch
from torch import Tensor

from fmscale.config.model import RopeScaling
from fmscale.kernels import rope
from fmscale.kernels.rope_eager import rope_turns


class Rotary:
    """Rotation of each pair (i, i + E/2) of queries and keys by its angle at the token's position, without weights."""

    def __init__(self, theta: float = 10_000.0, scaling: RopeScaling | None = None) -> None:
        self.theta = theta
        self.scaling = scaling

    def __call__(
        self, q: Tensor, k: Tensor, positions: Tensor, *,
        q_weight: Tensor | None = None, k_weight: Tensor | None = None, eps: float = 1e-6,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Rotate q (B, T, H, E) and k (B, T, K, E); positions (B, T) or (T,), whole numbers. With weights (E,) of both,
        each head is first normed as by `RMSNorm`.
        """
        turns = None
        if self.scaling is not None:
            plain = type(q) is Tensor and not torch.compiler.is_compiling()  # as in `rope`, which caches its turns too
            make = _kept_turns if plain else scaled_turns
            turns = make(q.shape[-1], self.theta, self.scaling, q.device)
        turned: tuple[Tensor, Tensor] = rope(
            q, k, positions, theta=self.theta, turns=turns, q_weight=q_weight, k_weight=k_weight, eps=eps
        )
        return turned


def scaled_turns(E: int, theta: float, scaling: RopeScaling, device: torch.device) -> Tensor:
    """Turns that a position adds to each of the E/2 pairs, fp64, stretched as in Llama 3.1."""
    turns = rope_turns(E, theta, device)
    over_original = turns * scaling.original_seq_len
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    fast = ((over_original - low) / (high - low)).clamp(0.0, 1.0)
    return turns * (fast + (1.0 - fast) / scaling.factor)


# Computed outside the inference mode of the first call: an inference tensor cannot be saved for a later backward.
_kept_turns = functools.cache(torch.inference_mode(False)(scaled_turns))
