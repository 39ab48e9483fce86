"""Training: a run from its config to its last checkpoint.

- `run.py`                a run: the ranks meet, its parts are assembled, its state is restored, the loop runs
- `session.py`            a rank's place, device, store and lease, before it builds anything
- `setup.py`              assembly of the loop's parts
- `loop.py`               steps, saves and evaluations until the end or a stop
- `step.py`               forward and backward of each microbatch, then an update
- `data.py`               sources, loader and tokenizer of the run, and the limits that they set
- `inputs.py`             the model's inputs as a microbatch again, for the delivery record
- `length.py`             steps of a run, from the tokens that its jobs trained
- `schedule.py`           the learning rate as a function of the step
- `seeds.py`              dropout as a function of step, rank and microbatch
- `journal.py`            metrics of the steps, reduced over ranks and written to sinks
- `evaluation.py`         losses on held-out rows
- `generations.py`        answers of the model in training
- `saving.py`             saves at their steps, and the state beside the tensors
- `spikes.py`             loss spikes: the rule, and the run's reaction to a step that is one
- `resume.py`             the checkpoint that a run goes on from, its own or another run's
- `model_changes.py`      keys of the model that change the function of a checkpoint's weights
- `reference.py`          the reference of a preference objective, and its check before the first update
- `init.py`               the first weights of a run from another run or from a folder in Hugging Face's format
- `adapters.py`           the frozen weights of an adapter run
- `recorded_schedule.py`  the batch schedule of a run, from its checkpoints
- `run_folder.py`         checks of the folders that a run writes to
- `compare.py`            the first difference of two runs
- `engine/`               the sharded model
- `preflight/`            problems and needs of a run before its start
"""
