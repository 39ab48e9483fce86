"""The whole way from text to a report in minutes (`fmscale quickstart`): ingest, train, move, generate, report.

`settings.py` settings, and the ranks and stages of its two halves
`state.py`    settings and screen of this process; corpus and times, kept between tries
`acts.py`     the acts in order
`corpus.py`   text: the standard library, or the user's own
`training.py` two jobs through `fmscale launch`, and an unbroken run
`heldout.py`  bits and completions of documents that training never saw
`results.py`  report.json and its claims
`page.py`     report.html
`life/`       the tour through the life of a tiny model (`fmscale quickstart life`)
"""
