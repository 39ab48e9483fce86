"""Chats: records of messages in one form, and their way through a template to tokens.

`formats.py`    the formats in use, in one form: messages, answers, tools
`sandbox.py`    Jinja for templates of strangers: no clock, no chance, bounded work
`template.py`   messages as text, with the places that a model writes and the special tokens that users typed
`render.py`     a record as tokens and the runs of them that are trained
"""
