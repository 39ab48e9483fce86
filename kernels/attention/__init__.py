"""Attention: training with documents, windows, soft-caps and sinks; decoding from a cache.

op.py        `flash_attention`: checks, the choice of a backend, registration with autograd
eager.py     attention in plain torch, the reference; the call of torch's own kernels
varlen.py    torch's own attention over documents, where Triton cannot serve a call
device.py    device functions and checks that the kernels share: documents, ranges, masks, the loop over keys
tiles.py     the list of document tiles, made on the device
forward.py   output and log-sum-exp
backward.py  gradients, in two passes without atomics
decode.py    `attention_decode`: the newest tokens against a cache, split along the cache
pages.py     `attention_pages`: the same on a CPU, over a cache in pages
configs.py   launch configurations, each free of spills on sm_90, and the choice for a call
"""
