"""Samples: what a record becomes for training.

`protocol.py`   a spec: columns, decode, make, size; a sample; randomness by `draw`
`text.py`       text of a record as tokens
`rows.py`       rows of a token view
`rendered.py`   texts of a rendered record
`specs.py`      specs by kind: from the config, and to and from the JSON in a view
`sizes.py`      lengths of samples by row, from a derived column
`segment_sizes.py`   sizes of a segment's records, with damage and bad records named
`derive.py`   the job that makes this column, in processes
"""
