"""Answers in replies, and votes."""

import pytest

from fmscale.config.checks import InvalidField
from fmscale.infer.prompt.answers import AnswerConfig, majority, parse_answer, plain_answer


@pytest.mark.parametrize(
    ("reply", "config", "answer"),
    [
        (" Paris.\n", AnswerConfig(), "Paris."),
        (" Paris.\n", AnswerConfig(strip=False), " Paris.\n"),
        ("10 - 2 = 8, so 1,208.50 remain.", AnswerConfig(find="number"), "1208.50"),
        ("10 - 2 = -8", AnswerConfig(find="number", take="first"), "10"),
        ("It is 10-2", AnswerConfig(find="number"), "-2"),
        ("no figure", AnswerConfig(find="number"), None),
        ("I choose (B), not A.", AnswerConfig(find="letter", take="first"), "I"),
        ("Answer: B", AnswerConfig(find="letter"), "B"),
        ("x #### 42\n", AnswerConfig(find="regex", regex=r"#### (\S+)"), "42"),
        ("#### or 7", AnswerConfig(find="regex", regex=r"#### (\d)|or (\d)"), "7"),
        ("The U.S.A.!", AnswerConfig(ignore_case=True, ignore_punctuation=True, remove=("^The ",)), "usa"),
    ],
)
def test_the_answer_of_a_reply(reply: str, config: AnswerConfig, answer: str | None) -> None:
    assert parse_answer(reply, config) == answer


def test_a_right_answer_takes_the_same_form() -> None:
    config = AnswerConfig(find="number", ignore_punctuation=True)
    assert plain_answer(" 1,208 ", config) == parse_answer("so 1208", config)


def test_the_majority_wins_and_ties_go_to_the_likelier_replies() -> None:
    assert majority(["8", "9", "8", None], [0.1, 9.0, 0.1, 9.0]) == "8"
    assert majority(["8", "9", None], [0.1, 0.2, 9.0]) == "9"
    assert majority(["8", "9"], [0.1, 0.1]) == "8"
    assert majority([None, None], [1.0, 1.0]) is None


@pytest.mark.parametrize(
    "wrong", [{"find": "regex"}, {"regex": "a"}, {"find": "regex", "regex": "("}, {"remove": ("[",)}]
)
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidField):
        AnswerConfig(**wrong)  # type: ignore[arg-type]
