"""Answers of the model in training: numbers do not show that a model never ends, or repeats itself."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from fmscale.infer.answer import ChatModel
from fmscale.infer.generate import generate
from fmscale.infer.load import TYPES, TrainedModel, empty_model, trained_model
from fmscale.models import Decoder
from fmscale.train.engine.protocol import Engine
from fmscale.train.session import Session


def generations(session: Session, engine: Engine, facts: Callable[[], Mapping[str, Any]]) -> list[dict[str, str]]:
    """The model's answer to each of `evaluation.prompts`, by the likeliest tokens. All ranks call it, and each answers
    its share with a copy of the whole weights: generation through the hooks of sharding would gather them for each
    token, and wait where ranks end at different lengths. `facts` are the meta of a checkpoint.

    Raises ConfigError for a model that is no decoder, or a run without a tokenizer.
    """
    config = session.config
    decoder = config.decoder("evaluation.prompts")

    def make(vocab_size: int) -> Decoder:
        assert config.train.precision, "the session has chosen it"
        dtype = TYPES[config.train.precision]
        model = empty_model(decoder, config.adapter, vocab_size=vocab_size, device=session.device, dtype=dtype)
        engine.copy_weights(model)
        return model.eval().requires_grad_(False)

    trained = trained_model(session.backend, config.train.run, facts(), make, digest="")
    mine = config.evaluation.prompts[session.dp.rank :: session.dp.size]
    threads = config.train.threads if session.device == "cpu" else None
    texts = _answers(trained, mine, config.evaluation.prompt_tokens, threads)
    shares = [json.loads(each) for each in session.waits.barrier("generations", value=json.dumps(texts))]
    size = len(shares)
    return [
        {"prompt": prompt, "text": shares[n % size][n // size]} for n, prompt in enumerate(config.evaluation.prompts)
    ]


def _answers(trained: TrainedModel, prompts: tuple[str, ...], tokens: int, threads: int | None) -> list[str]:
    chat = None if trained.template is None else ChatModel(trained)
    asked = [
        chat.prompt([{"role": "user", "content": prompt}]) if chat else trained.encode(prompt) for prompt in prompts
    ]
    found = generate(
        trained.model,
        asked,
        max_tokens=tokens,
        eos=chat.ends if chat else trained.eos,
        decode=trained.tokenizer.decode,
        vocabulary=trained.tokenizer.vocab_size,
        threads=threads,
    )
    return [one.text for one in found]
