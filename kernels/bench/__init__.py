"""`fmscale bench kernels`: ours and every peer in one run, checked before they are timed.

`command` is the entry; `rows` the problems, `contest` one of them, `contests` their run in a worker
process; `tune` and `trial` the tuner and its worker. Nothing is imported here: a worker starts often.
"""
