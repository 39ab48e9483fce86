"""Learning rate as a function of the step, with no state to save."""

import math

from fmscale.config.train import ScheduleConfig


def learning_rate(config: ScheduleConfig, peak: float, step: float, steps: float) -> float:
    """Rate of optimizer step `step` (from 0) in a run of `steps`; fractions of steps are places of other batches.

    Linear warmup reaches the peak at step `warmup_steps`; `wsd` (Hu et al. 2024, MiniCPM) stays there and
    decays linearly over the last `decay_fraction` of the steps; `cosine` (Loshchilov and Hutter 2017) begins
    to fall after the warmup; both end at `final_fraction` of the peak after the last step.
    """
    if step < config.warmup_steps:
        return peak * (step + 1) / (config.warmup_steps + 1)
    low = peak * config.final_fraction
    if config.kind == "constant":
        return peak
    if config.kind == "cosine":
        length = max(1, steps - config.warmup_steps)
        done = min(1.0, (step - config.warmup_steps) / length)
        return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * done))
    begin = max(config.warmup_steps, steps - round(steps * config.decay_fraction))
    if step < begin:
        return peak
    done = min(1.0, (step - begin + 1) / max(1, steps - begin))
    return max(low, peak + (low - peak) * done)  # the sum rounds to 0 for a tiny final_fraction
