"""From YAML to dataclasses, with file and line of each value.

`tree.py`         YAML as a tree whose nodes know their places
`convert.py`      a tree into dataclasses, strictly by their types
`refusals.py`     words of its errors: types, nearest names
`load.py`         a file, the files that it extends, and overrides on top
`reference.py`    every key with type, default and meaning, as docs/config.md
`json_schema.py`  every key as a JSON Schema for editors
"""
