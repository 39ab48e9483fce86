"""Prompt programs: forms, examples, votes."""

from dataclasses import replace
from pathlib import Path

import pytest

from fmscale.config.reader.load import shipped_configs
from fmscale.data.ingest import ingest
from fmscale.errors import ConfigError, DataError, FmscaleError
from fmscale.infer.answer import ChatModel
from fmscale.infer.generate import Completion
from fmscale.infer.load import TrainedModel, open_trained
from fmscale.infer.prompt import ProgramConfig, load_program, run_program
from fmscale.infer.prompt.answers import AnswerConfig
from fmscale.infer.prompt.complete import complete
from fmscale.infer.prompt.examples import drawn, of_dataset
from fmscale.infer.prompt.forms import Turns, chat_of, make_prompts
from fmscale.infer.prompt.program import RecordExamples, with_values
from fmscale.infer.sampling import Sampling
from fmscale.store.datasets.templates import ChatTemplate
from tests.infer.task_run import task_run

CHATML = (
    "{% for m in messages %}<|fim_prefix|>{{ m.role }}\n{{ m.content }}<|fim_suffix|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|fim_prefix|>assistant\n{% endif %}"
)

SAMPLING = Sampling(temperature=1.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return open_trained(task_run(tmp_path_factory.mktemp("programs")))


def with_template(trained: TrainedModel, text: str = CHATML) -> TrainedModel:
    """The run as it is with a chat template."""
    return replace(trained, template=ChatTemplate(text=text, special_tokens={}))


def test_examples_and_suffix_make_one_text(trained: TrainedModel) -> None:
    program = ProgramConfig(
        prompt="{{ word }} →", examples=({"word": "water", "answer": "eau"},), suffix=" ", separator="\n",
        system="To French.\n", max_tokens=3, form="plain",
    )  # fmt: skip
    first, second = run_program(trained, program, [{"word": "hello"}, {"word": "bread"}])
    assert first.prompt == "To French.\nwater → eau\nhello → "
    assert second.prompt.endswith("\nbread → ")
    assert run_program(trained, program, [{"word": "bread"}]) == [second]


def test_the_chat_form_writes_turns_with_special_tokens(trained: TrainedModel) -> None:
    chat = with_template(trained)
    turns = Turns(where="t", question="2 + 2?", system="Be brief.", examples=[("1 + 1?", "2")])
    prompt = make_prompts([turns], chat_of(chat, "auto"))[0]
    begin, end = (trained.tokenizer.specials[name] for name in ("<|fim_prefix|>", "<|fim_suffix|>"))
    said = [("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "2"), ("user", "2 + 2?")]
    (ends,) = trained.tokenizer.encode_batch(["\n"])
    wanted: list[int] = []
    for role, text in said:
        wanted += [begin, *trained.tokenizer.encode_batch([f"{role}\n{text}"])[0].tolist(), end, *ends.tolist()]
    wanted += [begin, *trained.tokenizer.encode_batch(["assistant\n"])[0].tolist()]
    assert prompt.encode(chat) == wanted
    assert prompt.encode(chat, "</s>") == [*wanted, *trained.tokenizer.encode_batch(["</s>"])[0].tolist()]
    result = run_program(chat, ProgramConfig(max_tokens=2), [{"question": "2 + 2?"}])[0]
    assert result.prompt.endswith("2 + 2?<|fim_suffix|>\n<|fim_prefix|>assistant\n")
    assert chat_of(chat, "plain") is chat_of(trained, "auto") is None


def test_special_tokens_that_users_type_are_text(trained: TrainedModel) -> None:
    chat, end = with_template(trained), trained.tokenizer.specials["<|fim_suffix|>"]
    question, alone = [{"role": "user", "content": "<|fim_suffix|> hi"}], Turns(where="t", question="<|fim_suffix|> hi")
    prompt = make_prompts([alone], chat_of(chat, "chat"))[0]
    assert prompt.encode(chat).count(end) == 1
    assert prompt.encode(chat) == ChatModel(chat).prompt(question)
    assert prompt.encode(chat, "a <|fim_suffix|>").count(end) == 1
    refusing = with_template(trained, "{{ raise_exception('no system role') }}")
    with pytest.raises(DataError, match="q: The chat template refuses these messages: found 'no system role'"):
        run_program(refusing, ProgramConfig(), [{"question": "hi"}], names=["q"])


def test_replies_in_a_chat_end_where_the_templates_turn_does(trained: TrainedModel) -> None:
    model = with_template(trained)
    chat = chat_of(model, "auto")
    assert chat
    assert set(chat.ends) == {*trained.ends, trained.tokenizer.specials["<|fim_suffix|>"]}
    program = ProgramConfig(max_tokens=20, samples=20, temperature=1.0)
    ids = make_prompts([Turns(where="q", question="hi")], chat)[0].encode(model)
    said = [
        [one.text for one in complete(model, [ids], max_tokens=20, samples=20, ends=ends, sampling=SAMPLING)[0]]
        for ends in (chat.ends, trained.ends)
    ]
    assert said[0] != said[1]
    assert run_program(model, program, [{"question": "hi"}])[0].replies == said[0]


def test_replies_have_no_special_tokens_but_those_that_stop_them(trained: TrainedModel) -> None:
    named, ids = trained.tokenizer.specials, trained.encode("the quick")

    def replies(stop: list[str]) -> list[Completion]:
        return complete(trained, [ids], max_tokens=20, samples=20, stop=stop, sampling=SAMPLING)[0]

    free = replies([])
    assert set(named.values()) & {token for reply in free for token in reply.tokens}
    assert not [name for name in named for reply in free if name in reply.text]
    stopped = [reply for reply in replies(["<|pad|>"]) if named["<|pad|>"] in reply.tokens]
    assert stopped
    assert {reply.stop for reply in stopped} == {"stop"}


def test_replies_vote(trained: TrainedModel) -> None:
    program = ProgramConfig(
        prompt="the quick brown", samples=6, temperature=1.0, max_tokens=2, form="plain",
        parser=AnswerConfig(find="regex", regex="[a-z]"),
    )  # fmt: skip
    result = run_program(trained, program, [{}])[0]
    assert len(result.replies) == 6
    assert sum(result.votes.values()) == len([answer for answer in result.parsed if answer is not None])
    assert result.votes[str(result.answer)] == max(result.votes.values())
    assert run_program(trained, program, [{}])[0] == result
    assert run_program(trained, replace(program, seed=1), [{}])[0].replies != result.replies


def test_drawn_numbers_are_different_and_a_function_of_their_document() -> None:
    found = [drawn(7, 6, seed=1, number=n, without=n) for n in range(7)]
    assert [sorted(one) for one in found] == [[i for i in range(7) if i != n] for n in range(7)]
    assert found[2] == drawn(7, 6, seed=1, number=2, without=2) != drawn(7, 6, seed=2, number=2, without=2)
    firsts = [drawn(4, 1, seed=0, number=n)[0] for n in range(400)]
    assert min(firsts.count(i) for i in range(4)) > 70
    with pytest.raises(ConfigError, match="too few documents"):
        drawn(3, 3, seed=0, number=0, without=1)


def test_examples_come_from_records_by_their_number(trained: TrainedModel, tmp_path: Path) -> None:
    lines = "".join(f'{{"question": "q{i}", "answer": "a{i}"}}\n' for i in range(9))
    (tmp_path / "r.jsonl").write_text(lines)
    url = str(trained.backend.url).removeprefix("file://")
    ingest([str(tmp_path)], store=url, dataset="pairs", kind="records", workers=1)
    four = of_dataset(trained.backend, "pairs", "train", 4, seed=3)
    assert len({record["question"] for record in four}) == 4
    assert of_dataset(trained.backend, "pairs", "train", 2, seed=3) == four[:2]
    assert len(of_dataset(trained.backend, "pairs", "train", 9, seed=3)) == 9
    program = ProgramConfig(records=RecordExamples(dataset="pairs", count=2, seed=3), max_tokens=1)
    prompt = run_program(trained, program, [{"question": "now"}])[0].prompt
    assert prompt == "".join(f"{one['question']} {one['answer']}\n\n" for one in four[:2]) + "now"
    for name, count, message in (("pairs", 10, "too few records"), ("docs", 1, "has no records")):
        with pytest.raises(FmscaleError, match=message):
            of_dataset(trained.backend, name, "train", count, seed=0)


@pytest.mark.slow
def test_every_shipped_program_runs(trained: TrainedModel) -> None:
    names = [name for name in shipped_configs() if name.startswith("program/")]
    assert len(names) == 5
    for name in names:
        program = replace(load_program(name.removeprefix("program/")), max_tokens=1)
        assert run_program(trained, program, [{}])[0].prompt
    assert "steps" not in load_program("oranges").suffix
    assert load_program("oranges_votes").samples == 5


def test_values_are_set_over_those_of_the_program() -> None:
    program = with_values(load_program("french"), ["word=a=b", "more="])
    assert program.values == {"word": "a=b", "more": ""}
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        with_values(program, ["word"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("promt: x", "p.yaml:1: unknown key: found 'promt'. Did you mean prompt?"),
        ("prompt: ''", "prompt must not be empty"),
        ("samples: 0", "samples must be at least 1"),
        ("temperature: -1", "temperature cannot be this"),
        ("parser: {find: regex}", "parser.regex belongs to find: regex"),
        ("form: chats", "form must be"),
    ],
)
def test_a_wrong_program_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError) as caught:
        load_program(str(tmp_path / "p.yaml"))
    assert message in str(caught.value)
