"""Prompts as data: templates, examples, forms, answers and votes.

- `templates.py` templates with values, in the sandbox of chat templates
- `forms.py`     a question with its examples, as plain text or by the run's chat template
- `examples.py`  examples as a function of a seed, from documents or from a dataset
- `complete.py`  replies of a model to prompts
- `answers.py`   the answer in a reply, and a majority of answers
- `program.py`   a prompt program, read from YAML and run
"""

from fmscale.infer.prompt.program import ProgramConfig, load_program, run_program

__all__ = ["ProgramConfig", "load_program", "run_program"]
