"""Doctor: abilities of a store, its speed, and advice.

`doctor.py`   the examination behind `fmscale doctor`
`probe.py`   races and reads that show whether commits are safe
`measure.py`   latency and throughput by kind of request
`advice.py`   sentences for the user
"""
