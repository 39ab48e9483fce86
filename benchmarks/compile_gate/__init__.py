"""The compile gate: every shipped configuration of every kernel, compiled for sm_90 without a GPU.

case.py  one configuration of one kernel
cases/   those of every op, a file an op
lint.py  code shapes that released Triton versions miscompile
gate.py  compilation, judgement and the table of results; the command
"""
