"""The compile gate: every shipped configuration of every kernel, compiled for sm_90 without a GPU.

case.py  one configuration of one kernel, as an op module lists it
lint.py  code shapes that released Triton versions miscompile
gate.py  compilation, judgement and the table of results; the command
"""
