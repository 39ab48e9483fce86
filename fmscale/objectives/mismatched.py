"""Mismatched pairs of a step: prompts with answers to other prompts, from which KTO estimates its divergence."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fmscale.objectives.protocol import Gather

Given = Mapping[str, Tensor]


def mismatched(inputs: Sequence[Given], gather: Gather) -> Iterator[dict[str, Tensor]]:
    """A flat forward for each of this rank's forwards of pairs, tensors as `grouped` makes them: each document's
    prompt, and the answer of the same side of the next pair.

    Pairs follow one another in the order of a digest of their tokens, the last before the first, so that the result is
    the same for any ranks and forwards. The answer begins at the first trained token and ends with the last; a lone
    pair of a step has no mismatch and gives empty forwards.
    """
    device = inputs[0]["tokens"].device
    own = [_pairs(given) for given in inputs]
    pairs = [pair for forward in own for pair in forward]
    digests = [_digest(pair) for pair in pairs]
    answers = [answer for pair in pairs for _, answer in pair]
    rows_own = [[*digest, *(len(answer) for _, answer in pair)] for digest, pair in zip(digests, pairs, strict=True)]
    table = torch.tensor(rows_own, dtype=torch.int64, device=device).view(-1, 4)
    flat = torch.cat([*answers, torch.empty(0, dtype=torch.int64)]).to(device)
    rows, tokens = gather(table).tolist(), gather(flat).cpu()
    every = tokens.split([length for row in rows for length in row[2:]])
    order = sorted(range(len(rows)), key=lambda number: rows[number][:2])
    place = {tuple(rows[number][:2]): at for at, number in enumerate(order)}
    at = 0
    for forward in own:
        documents: list[tuple[Tensor, Tensor]] = []
        for pair in forward:
            partner = order[(place[digests[at]] + 1) % len(order)]
            documents += [(pair[side][0], every[2 * partner + side]) for side in (0, 1)] if len(order) > 1 else []
            at += 1
        yield {name: tensor.to(device) for name, tensor in _packed(documents).items()}


def _pairs(given: Given) -> list[list[tuple[Tensor, Tensor]]]:
    """(prompt, answer) of both documents of each pair of a forward, on the host."""
    tokens, ends = given["tokens"].flatten().cpu(), given["cu_seqlens"].tolist()
    trained, targets, spans = (given[name].cpu() for name in ("trained", "targets", "spans"))
    documents = []
    for number, (first, stop) in enumerate(pairwise(spans.tolist())):
        begin = ends[number]
        if first == stop:
            documents.append((tokens[begin : ends[number + 1]], targets[:0]))
            continue
        after, last = int(trained[first]) + 1, int(trained[stop - 1])
        # The label of a position is the next token, and the last label alone is no input.
        documents.append((tokens[begin:after], torch.cat((tokens[after : last + 1], targets[stop - 1 : stop]))))
    return [documents[number : number + 2] for number in range(0, len(documents), 2)]


def _digest(pair: list[tuple[Tensor, Tensor]]) -> tuple[int, int]:
    found = hashlib.blake2b(digest_size=16)
    for part in (part for document in pair for part in document):
        found.update(len(part).to_bytes(8, "little") + part.numpy().tobytes())
    halves = found.digest()
    return int.from_bytes(halves[:8], "little", signed=True), int.from_bytes(halves[8:], "little", signed=True)


def _packed(documents: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Documents one after another, each answer's tokens the trained labels."""
    inputs, labels, trained, positions = ([torch.empty(0, dtype=torch.int64)] for _ in range(4))
    ends, spans = [0], [0]
    for prompt, answer in documents:
        whole = torch.cat((prompt, answer))
        inputs.append(whole[:-1])
        labels.append(answer)
        positions.append(torch.arange(len(whole) - 1))
        trained.append(ends[-1] + len(prompt) - 1 + torch.arange(len(answer)))
        ends.append(ends[-1] + len(whole) - 1)
        spans.append(spans[-1] + len(answer))
    if ends[-1] == 0:  # a forward must have a token
        inputs.append(torch.zeros(1, dtype=torch.int64))
        positions.append(torch.zeros(1, dtype=torch.int64))
        ends.append(1)
    return {
        "tokens": torch.cat(inputs)[None],
        "positions": torch.cat(positions)[None],
        "cu_seqlens": torch.tensor(ends, dtype=torch.int32),
        "trained": torch.cat(trained),
        "targets": torch.cat(labels),
        "spans": torch.tensor(spans),
    }
