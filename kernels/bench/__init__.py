"""`fmscale bench kernels`: ours and every peer in one run, checked before they are timed. In reading order:

`command.py` is the entry. `sizes.py`, `rows.py`, `attention_rows.py`, `loss_rows.py` and `memory_rows.py` list the
problems; `problems.py` those that are tuned. `contest.py` measures a problem's contestants, of which `peers.py` has
the foreign ones, and `contests.py` all problems in a worker process, which `workshop.py` keeps and `serve.py` is;
`timing.py` has the clocks. `ceilings.py` and `roofline.py` give the limits of the device, `claims.py` the targets,
`verdict.py` their outcome, `listing.py` and `report.py` what is shown. `tune.py` is the tuner, and `trial.py` its
worker.

Nothing is imported here: a worker starts often.
"""
