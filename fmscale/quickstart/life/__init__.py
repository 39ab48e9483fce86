"""`fmscale quickstart life`: from nothing to a model that prefers to think, on a CPU in minutes. In reading order:

- `problems.py`  problems with worked answers: texts, chats, pairs, tokenizer, chat template
- `acts.py`      the verbs that a user would type, one after another
- `page.py`      the report
"""
