"""The command line: one file for each verb, which calls the other packages and prints the results.

`main.py`     the verbs, and the display of errors
`output.py`   tables, JSON, progress bars
`address.py`  STORE/DATASET, STORE#RUN[@STEP], KEY=VALUE
`ingest.py`, `dataset.py` (`dataset_audit.py`, `dataset_derive.py`, `dataset_mask.py`, `dataset_repair.py`)  data
`config.py`, `plan.py`, `launch.py`, `train.py` (`train_screen.py`), `compare.py`  runs
`checkpoint.py`, `generate.py`, `evaluate.py`, `score.py`  models
`doctor.py`, `bench.py`, `quickstart.py` (`quickstart_screen.py`)  this machine and its store
"""
