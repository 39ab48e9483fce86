"""Tokenizers: text to ids and back.

`protocol.py`   the protocol, the special tokens, the stored type of ids.
`tokenizer.py`  loads any tokenizer; the tokenizer of bytes.
`bpe.py`        byte-level BPE and every other `tokenizer.json`, with a fast path for ASCII.
"""
