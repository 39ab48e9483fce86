"""Objectives over pairs and rankings: packed forwards against each document alone in fp64, and refusals."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fmscale.config.objective import DpoConfig, KtoConfig, ObjectiveConfig, OrpoConfig, RewardConfig, SimpoConfig
from fmscale.errors import DataError
from fmscale.models import build
from fmscale.objectives import Inputs, Pairs, make_objective
from fmscale.objectives.mismatched import mismatched
from fmscale.objectives.preference import dpo_losses, kto_losses, orpo_losses, simpo_losses
from tests.train.preferences import PAIRS, VOCAB, config_of, exact, forward_of, samples

CLOSE = 1e-5
"""fp32 against fp64, relative to the largest element of a tensor."""


def models(objective: ObjectiveConfig) -> tuple[Any, Any]:
    """A model with a reference of other weights, in fp32 and in fp64."""
    both = []
    for dtype in (torch.float32, torch.float64):
        decoder = config_of(objective, 0).decoder("this test")
        model: Any = build(decoder, vocab_size=VOCAB)
        model.init_weights(torch.Generator().manual_seed(1))
        model.reference = build(decoder, vocab_size=VOCAB)
        model.reference.init_weights(torch.Generator().manual_seed(2))
        model.reference.requires_grad_(False)
        if objective.kind == "reward":
            model.score.weight.data.copy_(torch.randn(1, decoder.dim, generator=torch.Generator().manual_seed(3)))
        both.append(model.to(dtype))
    return both[0], both[1]


def by_hand(config: ObjectiveConfig, model: Any) -> Tensor:
    """The summed loss, each document read alone."""
    read = [exact(model, sample) for sample in samples(0)]
    with torch.no_grad():
        reference = [exact(model.reference, sample)[0] for sample in samples(0)]
    logps, lengths = (torch.stack([each[part] for each in read]) for part in (0, 1))
    chosen, rejected = (logps - torch.stack(reference)).unbind(1)
    means = (logps / lengths).unbind(1)
    if isinstance(config, OrpoConfig):
        return orpo_losses(*means, weight=0.1).sum()
    if isinstance(config, SimpoConfig):
        return simpo_losses(*means, beta=2.0, margin=1.0).sum()
    if isinstance(config, KtoConfig):
        return kto_losses(chosen, rejected, torch.tensor(0.3, dtype=torch.float64), beta=0.1).sum()
    return dpo_losses(chosen, rejected, beta=0.1).sum()


@pytest.mark.parametrize("config", [DpoConfig(), KtoConfig(), OrpoConfig(), SimpoConfig()], ids=lambda c: c.kind)
def test_a_packed_forward_has_loss_and_gradient_of_documents_read_alone(config: ObjectiveConfig) -> None:
    fp32, fp64 = models(config)
    objective = make_objective(config)
    loss = objective(fp32, objective.collate(forward_of(samples(0))), torch.tensor(0.3))
    wanted = by_hand(config, fp64)
    assert loss.sum.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert loss.count.item() == PAIRS
    assert loss.by_sample[0].sum().item() == pytest.approx(wanted.item(), rel=1e-6)
    compare_gradients(loss.sum, fp32, wanted, fp64)


def compare_gradients(loss: Tensor, fp32: nn.Module, wanted: Tensor, fp64: nn.Module) -> None:
    torch.autograd.backward([loss, wanted])
    ours, theirs = (
        {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None} for model in (fp32, fp64)
    )
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() <= CLOSE * gradient.abs().max(), name


@pytest.mark.parametrize("loss", ["bradley_terry", "plackett_luce"])
def test_the_score_is_that_of_the_last_trained_token(loss: Any) -> None:
    config = RewardConfig(loss=loss)
    fp32, fp64 = models(config)
    objective = make_objective(config)
    found = objective(fp32, objective.collate(forward_of(samples(0, answers=3))), None)
    total: Any = 0.0
    for sample in samples(0, answers=3):
        s = fp64.score(exact(fp64, sample)[2])[:, 0]
        if loss == "plackett_luce":
            total += sum(s[i:].logsumexp(0) - s[i] for i in range(3))
        else:
            total -= sum(torch.nn.functional.logsigmoid(s[i] - s[j]) for i, j in ((0, 1), (0, 2), (1, 2))) / 3
    assert found.sum.item() == pytest.approx(total.item(), rel=1e-6)
    compare_gradients(found.sum, fp32, total, fp64)


def test_a_column_takes_the_place_of_the_reference() -> None:
    given, column = samples(0, reference=True), Pairs(DpoConfig(reference="base@1"))
    fp32, fp64 = models(column.config)
    del fp32.reference
    found = column(fp32, column.collate(forward_of(given, reference=True)))
    wanted = [
        dpo_losses(*(exact(fp64, each)[0].detach() - torch.from_numpy(each.tensors["reference"]))[:, None], beta=0.1)
        for each in given
    ]
    assert found.by_sample[0].tolist() == pytest.approx(torch.cat(wanted).tolist(), rel=5e-6)


def test_samples_without_content_have_no_weight() -> None:
    empty = samples(0)[0]._replace(tensors={}, pieces=())
    config = DpoConfig()
    fp32, _ = models(config)
    objective = make_objective(config)
    whole = objective(fp32, objective.collate(forward_of(samples(0)[:3])), None)
    mixed = objective(fp32, objective.collate(forward_of([empty, *samples(0)[:2], empty, samples(0)[2], empty])), None)
    assert mixed.by_sample[1].tolist() == [0, 1, 1, 0, 1, 0]
    torch.testing.assert_close(mixed.by_sample[0, [1, 2, 4]], whole.by_sample[0])
    assert mixed.count.item() == whole.count.item() == 3
    nothing = objective(fp32, objective.collate(forward_of([])), None)
    nothing.sum.backward()
    assert (nothing.sum.item(), nothing.count.item()) == (0, 0)


@pytest.mark.parametrize(
    ("config", "answers", "needed"),
    [(DpoConfig(), 3, "a pair"), (DpoConfig(), 1, "a pair"), (RewardConfig(), 1, "two answers or more")],
)
def test_samples_of_another_number_of_documents_are_refused(config: Any, answers: int, needed: str) -> None:
    with pytest.raises(DataError, match=needed) as caught:
        make_objective(config).collate(forward_of(samples(0, answers=answers)))
    assert f"a sample of {answers} documents" in str(caught.value)


def test_mismatched_pairs_have_prompts_and_answers_of_neighbours() -> None:
    """The answers of a step are dealt to other prompts of the step, each once, for any division into forwards."""
    objective = Pairs(KtoConfig())

    def pieces(forwards: int) -> list[tuple[list[int], list[int]]]:
        inputs = [objective.collate(forward_of(samples(0)[number::forwards])) for number in range(forwards)]
        return [document for given in made(inputs) for document in split(given)]

    def made(inputs: list[Inputs]) -> list[Any]:
        return list(mismatched([each.tensors for each in inputs], lambda rows: rows))

    def split(given: Any) -> list[tuple[list[int], list[int]]]:
        """(prompt, answer) of each document: the first trained label is behind the prompt."""
        out = []
        ends, spans = given["cu_seqlens"].tolist(), given["spans"].tolist()
        for number in range(len(spans) - 1):
            answer = given["targets"][spans[number] : spans[number + 1]].tolist()
            tokens = given["tokens"][0, ends[number] : ends[number + 1]].tolist()
            assert tokens[len(tokens) - len(answer) + 1 :] == answer[:-1]
            out.append((tokens[: len(tokens) - len(answer) + 1], answer))
        return out

    own = [document for given in [objective.collate(forward_of(samples(0))).tensors] for document in split(given)]
    one, three = pieces(1), pieces(3)
    assert sorted(one) == sorted(three)
    assert sorted(prompt for prompt, _ in one) == sorted(prompt for prompt, _ in own)
    assert sorted(answer for _, answer in one) == sorted(answer for _, answer in own)
    assert not set(map(str, one)) & set(map(str, own))
    lone = made([objective.collate(forward_of(samples(0)[:1]))])
    assert not len(lone[0]["targets"])
