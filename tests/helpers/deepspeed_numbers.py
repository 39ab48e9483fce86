"""Ranks that later tests reuse have made different numbers of engines before."""


def restart_numbers() -> None:
    """Have DeepSpeed number modules and parameters from 0 again, as in a new process: ZeRO-3 refuses ranks where
    they have different numbers, and the pool's ranks have not all taken part in the same calls.
    """
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.runtime.zero.partition_parameters import Init

    DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
    Init.param_id = 0
