import math
import subprocess
from collections.abc import Callable

import numpy as np
import pytest
import torch
import zstandard

from fmscale.errors import ConfigError
from fmscale.infer import Document, evaluate
from fmscale.infer.compressors import COMPRESSORS, bits_per_byte, gzip_bytes, primed_zstd, xz_bytes
from fmscale.models import Decoder
from tests.models.models import VOCAB, small, tokens


def documents(*lengths: int, bos: bool = False) -> list[Document]:
    return [
        Document(name=f"{i}", text=b"x" * (3 * length + 1), tokens=tokens(length, seed=length).numpy(), bos=bos)
        for i, length in enumerate(lengths)
    ]


@torch.no_grad()
def costs(model: Decoder, ids: np.ndarray, begin: int) -> list[float]:
    """-log p of each token but the first, read from token `begin` on, one forward for all."""
    row = torch.from_numpy(ids[begin:])[None]
    log_p = model.head(model(row))[0].double().log_softmax(-1)
    return [-float(log_p[i, row[0, i + 1]]) for i in range(row.shape[1] - 1)]


def test_every_token_counts_once() -> None:
    model = small()
    given = documents(7, 1, 23, 12)
    result = evaluate(model, given, batch_tokens=20)
    for document, score in zip(given, result.documents, strict=True):
        wanted = math.log(VOCAB) + sum(costs(model, document.tokens, 0))
        assert score.nats == pytest.approx(wanted, rel=1e-5)
        assert (score.name, score.bytes, score.tokens) == (
            document.name, len(document.text), len(document.tokens)
        )  # fmt: skip
    total = result.total
    assert total.nats == pytest.approx(sum(score.nats for score in result.documents))
    assert (total.tokens, total.bytes) == (43, 3 * 43 + 4)
    assert total.bits_per_byte == pytest.approx(total.nats / math.log(2) / total.bytes)
    assert total.perplexity == pytest.approx(math.exp(total.nats / 43))


def test_a_bos_is_given_and_costs_nothing() -> None:
    model = small()
    given = documents(9, 1, bos=True)
    result = evaluate(model, given)
    assert [score.tokens for score in result.documents] == [8, 0]
    assert result.documents[0].nats == pytest.approx(sum(costs(model, given[0].tokens, 0)), rel=1e-5)
    assert result.documents[1].nats == 0.0


@pytest.mark.parametrize(("window", "overlap"), [(8, 0), (8, 3), (8, 7), (5, 4), (1, 0), (30, 10)])
def test_long_documents_are_read_in_windows(window: int, overlap: int) -> None:
    """Token t of a document is predicted from the first window that has it."""
    model = small()
    (document,) = given = documents(26)
    ids, wanted, scored, begin = document.tokens, math.log(VOCAB), 0, 0
    while scored < 25:
        end = min(begin + window, 25)
        wanted += sum(costs(model, ids[: end + 1], begin)[scored - begin :])
        scored, begin = end, end - overlap
    result = evaluate(model, given, window=window, overlap=overlap)
    assert (result.window, result.overlap) == (window, overlap)
    assert result.total.nats == pytest.approx(wanted, rel=1e-5)
    assert result.total.tokens == 26


def test_a_model_that_knows_nothing_needs_the_bits_of_its_vocabulary() -> None:
    model = small()
    model.output.weight.data.zero_()
    total = evaluate(model, documents(10, 200), window=16).total
    assert total.loss == pytest.approx(math.log(VOCAB))
    assert total.perplexity == pytest.approx(VOCAB)
    assert total.bits_per_byte == pytest.approx(210 * math.log2(VOCAB) / 632)


def test_empty_documents_cost_nothing() -> None:
    result = evaluate(small(), [Document(name="empty", text=b"", tokens=np.zeros(0, np.uint16)), *documents(4)])
    assert (result.documents[0].nats, result.documents[0].tokens) == (0.0, 0)
    assert math.isnan(result.documents[0].bits_per_byte)
    assert math.isnan(evaluate(small(), []).total.loss)


def test_dropout_is_off_and_the_mode_restored() -> None:
    model = small(dropout=0.5)
    calm = evaluate(model, documents(9)).total.nats
    model.train()
    assert evaluate(model, documents(9)).total.nats == calm
    assert model.training


def test_what_cannot_be_is_refused() -> None:
    model = small(max_seq_len=16)
    for window, overlap, message in (
        (17, 0, "window"),
        (0, 0, "window"),
        (8, 8, "overlap"),
        (8, -1, "overlap"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(model, documents(4), window=window, overlap=overlap)
    stranger = Document(name="d", text=b"", tokens=np.array([1, VOCAB]))
    with pytest.raises(ConfigError, match="d has token ids"):
        evaluate(model, [stranger])


@pytest.mark.parametrize(("command", "count"), [("gzip", gzip_bytes), ("xz", xz_bytes)])
def test_compressors_are_the_commands(command: str, count: Callable[[bytes], int]) -> None:
    text = b"".join(b"def f%d(x):\n    return x + %d\n" % (i, i) for i in range(300))
    out = subprocess.run([command, "-9", "-c"], input=text, capture_output=True, check=True).stdout
    assert count(text) == pytest.approx(len(out), abs=8)


def test_a_primed_compressor_has_read_what_it_is_given() -> None:
    seen = b"".join(b"def f%d(x):\n    return x + %d\n" % (i, i * i) for i in range(3000))
    text = seen[40_000:44_000] + b"and something new"
    assert primed_zstd(seen)(text) < 50 < primed_zstd(b"")(text)
    assert primed_zstd(b"")(b"") > 0
    known = zstandard.ZstdCompressionDict(seen, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    plain = zstandard.ZstdCompressor(level=19, dict_data=known).compress(text)
    assert primed_zstd(seen)(text) == pytest.approx(len(plain), abs=16)


def test_bits_per_byte_are_all_bits_over_all_bytes() -> None:
    texts = [b"a" * 1000, b"", b"xyz"]
    for compress in COMPRESSORS.values():
        wanted = 8 * sum(compress(text) for text in texts) / 1003
        assert bits_per_byte(texts, compress) == pytest.approx(wanted)
