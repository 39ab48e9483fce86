"""Plan of a run: sample k → source and row, from recorded stages and bans; and the share of each rank.

`bans.py`            rows excluded from a given sample on, and their substitutes.
`plan.py`            sources, stages and bans as the function k → sample.
`order_log.py`       stages, bans and quarantines as entries of the run's log, and the plan that they make.
`batch_schedule.py`  step → its samples.
`assign.py`          steps → the rows and forwards of a rank.
`flat.py`            steps → flat forwards of a rank, by the lengths of samples.
"""
