"""Models in formats of other software: imports into a run, and the files beside the weights of an export.

`source.py`          a model that others made: config, tensors, tokenizer, template, small files
`folder.py`          a folder in Hugging Face's format
`gguf.py`            a GGUF file: weights and config
`gguf_tokenizer.py`  its tokenizer
`import_run.py`      a source as a run of one checkpoint
`export.py`          names, config and tokenizer of a run for Hugging Face's libraries
"""
