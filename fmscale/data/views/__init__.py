"""Views: the rows of a dataset as training reads them.

`view.py`        a view: commits, masks and spec under one digest.
`token_view.py`  a view whose rows are tokens.
`record_view.py` a view whose rows are records.
`decode.py`      a view from its JSON.
`mask.py`        masks: documents or records that views leave out.
`mask_spans.py`  kept tokens of a commit, counted past masked spans.
`placement.py`   unit or row → spans of tokens in segments.
"""
