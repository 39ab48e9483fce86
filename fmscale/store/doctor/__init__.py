"""Doctor: what a store can do, how fast it answers, what to change.

`doctor.py`   the examination behind `fmscale doctor`
`probe.py`   races and reads that show whether commits are safe
`measure.py`   latency and throughput by kind of request
`advice.py`   sentences for the user
"""
