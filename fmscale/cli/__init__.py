"""The command line: one file for each verb, which calls the other packages and prints the results.

`main.py`     the verbs, and the display of errors
`output.py`   tables, JSON, progress bars
`address.py`  STORE/DATASET, STORE#RUN[@STEP], KEY=VALUE
`model.py`    a run's model: device, precision, the choice of tokens
`ingest.py`, `dataset.py` (`dataset_audit.py`, `dataset_decontaminate.py`, `dataset_derive.py`, `dataset_mask.py`,
`dataset_render.py`, `dataset_repair.py`)  data
`config.py`, `plan.py`, `launch.py`, `train.py` (`train_screen.py`), `run.py`, `top.py`, `compare.py`,
`report.py`  runs
`import_model.py`, `checkpoint.py`, `adapter.py`, `generate.py` (`generate_program.py`), `evaluate.py`
(`evaluate_tasks.py`), `score.py`, `chat.py`, `serve.py`  models
`doctor.py`, `bench.py`, `quickstart.py` (`quickstart_screen.py`)  this machine and its store
"""
