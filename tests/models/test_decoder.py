from typing import Any

import pytest
import torch

from fmscale.config import ModelConfig
from fmscale.errors import ConfigError
from fmscale.models import build, load_weights
from tests.models.models import GEMMA, VOCAB, packed, small, tokens

KINDS = [{}, {"tied": True}, {"window": 3}, {"softcap": 5.0, "num_kv_heads": None}, {"head_dim": 4}, GEMMA]
CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-5}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_document_does_not_see_its_neighbours(kind: dict[str, Any]) -> None:
    model = small(**kind)
    first, second, third = tokens(7), tokens(12, seed=1), tokens(5, seed=2)
    together = model.head(model(**packed(first, second, third)))[0]
    other = model.head(model(**packed(tokens(7, seed=3), second, tokens(5, seed=4))))[0]
    alone = model.head(model(second[None]))[0]
    assert torch.equal(together[7:19], other[7:19])
    torch.testing.assert_close(together[7:19], alone, **CLOSE)
    unmasked = model.head(model(torch.cat((first, second, third))[None]))[0]
    assert not torch.allclose(unmasked[7:19], alone, **CLOSE), "the model sees nothing of a neighbour anyway"


@torch.no_grad()
def test_documents_reach_over_several_rows_as_one_sequence() -> None:
    model = small()
    first, second = tokens(9), tokens(7, seed=1)
    arguments = packed(first, second)
    rows = {
        "tokens_BT": arguments["tokens_BT"].view(2, 8),
        "positions_BT": arguments["positions_BT"].view(2, 8),
        "cu_seqlens": arguments["cu_seqlens"],
    }
    torch.testing.assert_close(model(**rows).view(1, 16, -1), model(**arguments), **CLOSE)


@torch.no_grad()
def test_a_token_sees_nothing_after_it() -> None:
    model = small()
    row, other = tokens(1, 10), tokens(1, 10)
    other[0, 6:] = tokens(4, seed=9)
    assert torch.equal(model(row)[:, :6], model(other)[:, :6])
    assert not torch.allclose(model(row)[:, 6:], model(other)[:, 6:])


@torch.no_grad()
def test_positions_count_from_the_documents_beginning() -> None:
    model = small()
    arguments = packed(tokens(4), tokens(6, seed=1))
    positions = arguments.pop("positions_BT")
    assert positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]]
    wanted = model(**arguments, positions_BT=positions)
    assert torch.equal(model(**arguments), wanted)
    # rotary positions encode only distances: another offset changes only the rounding
    torch.testing.assert_close(model(**arguments, positions_BT=positions + 17), wanted, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(model(**arguments, positions_BT=positions * 2), wanted, atol=1e-2)


def test_names_are_those_that_checkpoints_use() -> None:
    names = [name for name, _ in small(num_layers=1).named_parameters()]
    assert names == [
        "tok_embeddings.weight",
        *(f"layers.0.attention.{w}.weight" for w in ("wq", "wk", "wv", "wo")),
        *(f"layers.0.feed_forward.{w}.weight" for w in ("w1", "w2", "w3")),
        "layers.0.attention_norm.weight",
        "layers.0.ffn_norm.weight",
        "norm.weight",
        "output.weight",
    ]
    tied = [name for name, _ in small(num_layers=1, tied=True).named_parameters()]
    assert tied == names[:-1]


def test_initial_weights_are_a_function_of_the_seed() -> None:
    first, second = small(), small()
    with torch.device("meta"):
        elsewhere = build(first.config, vocab_size=VOCAB)
    elsewhere = elsewhere.to_empty(device="cpu").to(torch.bfloat16)
    torch.manual_seed(123)
    elsewhere.init_weights(torch.Generator().manual_seed(0))
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), elsewhere.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(a.to(torch.bfloat16), c), name
    second.init_weights(torch.Generator().manual_seed(1))
    assert not torch.equal(first.output.weight, second.output.weight)


def test_initial_weights_have_their_deviation() -> None:
    model = build(ModelConfig(num_layers=2, dim=128, num_heads=4), vocab_size=500)
    model.init_weights(torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
            continue
        wanted = 0.01 if name.endswith(("wo.weight", "w2.weight")) else 0.02
        assert parameter.std().item() == pytest.approx(wanted, rel=0.05), name


def test_initial_norms_are_ones_and_biases_zeros_whatever_the_offset() -> None:
    for name, parameter in small(**GEMMA).named_parameters():
        if parameter.dim() == 1:
            assert not parameter.any(), name
    for name, parameter in small(**{**GEMMA, "norm_offset": 0.0}).named_parameters():
        if parameter.dim() == 1:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name


def test_the_bounded_logits_are_those_of_the_loss() -> None:
    """The loss never holds all logits: it bounds its chunks itself."""
    model = small(**GEMMA)
    labels, hidden = tokens(1, 300, seed=1), model(tokens(1, 300))
    logits = model.head(hidden)
    assert logits.abs().max() < 8
    _, _, losses = model.head(hidden, labels=labels)
    wanted = torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="none")
    torch.testing.assert_close(losses[0], wanted.detach(), **CLOSE)


def test_dropout_drops_in_training_only() -> None:
    model = small(dropout=0.5)
    row = tokens(1, 8)
    assert torch.equal(model(row), small()(row))
    model.train()
    torch.manual_seed(0)
    once = model(row)
    torch.manual_seed(0)
    assert torch.equal(model(row), once)
    assert not torch.allclose(model(row), once)


def test_all_that_a_block_adds_can_be_dropped() -> None:
    model = small(dropout=1 - 1e-7).train()
    torch.manual_seed(0)
    row = tokens(1, 8)
    assert torch.equal(model(row), model.norm(model.tok_embeddings(row)))


def test_a_tied_weight_gets_the_gradient_of_both_uses() -> None:
    model = small(tied=True)
    untied = small()
    untied.load_state_dict(model.state_dict())
    row = tokens(1, 8)
    for each in (model, untied):
        total, _, _ = each.head(each(row), labels=tokens(1, 8, seed=1))
        total.backward()
    embedding, output = untied.tok_embeddings.weight.grad, untied.output.weight.grad
    assert embedding is not None
    assert output is not None
    both = embedding + output
    torch.testing.assert_close(model.tok_embeddings.weight.grad, both)


@pytest.mark.parametrize("kind", [{}, GEMMA])
def test_every_weight_has_a_gradient(kind: dict[str, Any]) -> None:
    model = small(**kind)
    total, count, losses = model.head(model(**packed(tokens(4), tokens(6))), labels=tokens(1, 10, seed=1))
    total.backward()
    assert count == 10
    torch.testing.assert_close(losses.sum(), total.detach())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any(), name


def test_weights_are_read_by_name_and_those_of_another_model_refused() -> None:
    source, model = small(), small()
    model.init_weights(torch.Generator().manual_seed(1))
    weights = dict(source.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in weights.items()}
    load_weights(model, lambda name: weights[name].double(), shapes)
    assert torch.equal(model(tokens(1, 5)), source(tokens(1, 5)))

    other = small(dim=16, num_layers=1, tied=True)
    before = other.norm.weight.clone()
    with pytest.raises(ConfigError, match="another model") as refused:
        load_weights(other, weights.__getitem__, shapes)
    assert "layers.0.attention.wk.weight: (16, 32), the model has (8, 16); " in str(refused.value.found)
    assert str(refused.value.found).endswith("; and 16 more")
    assert torch.equal(other.norm.weight, before)
    with pytest.raises(ConfigError, match=r"\(101, 32\), the model has \(101, 16\)"):
        load_weights(other, lambda name: weights[name])


def test_another_vocabulary_than_the_configs_is_refused() -> None:
    with pytest.raises(ConfigError, match="another vocabulary"):
        build(ModelConfig(vocab_size=50), vocab_size=60)
