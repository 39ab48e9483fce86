"""A resume takes the model from the recorded config, also where another model has tensors of the same shapes."""

from pathlib import Path

import pytest

from fmscale.config import ModelConfig, as_tree, load_config
from fmscale.errors import ConfigError
from fmscale.train.model_changes import refuse_model_changes, section_changes
from fmscale.train.preflight.preflight import Preflight, check_run
from tests.helpers.own import Bigrams
from tests.helpers.ranks import run_ranks
from tests.train.runs import make_corpus, train_here, write_config

SCALING = "{factor: 4, low_freq_factor: 1, high_freq_factor: 4, original_seq_len: 16}"
CHANGES = {
    "model.num_heads=4 model.num_kv_heads=2": ("num_heads: 4, recorded 2", "num_kv_heads: 2, recorded 1", "head_dim"),
    "model.rope_theta=5e5": ("rope_theta: 500000.0, recorded 10000.0",),
    f"model.rope_scaling={SCALING}": ("rope_scaling: {'factor': 4.0", "recorded None"),
    "model.window=8": ("window: 8, recorded None",),
    "model.softcap=5": ("softcap: 5.0, recorded None",),
    "model.logit_softcap=5": ("logit_softcap: 5.0, recorded None",),
    "model.norm_eps=0.1": ("norm_eps: 0.1, recorded 1e-05",),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run that was saved after a step."""
    folder = tmp_path_factory.mktemp("changes")
    path = write_config(folder, make_corpus(folder))
    run_ranks(train_here, 1, str(path), ("train.steps=1",), timeout=120)
    return path


def planned(path: Path, change: str, *more: str) -> Preflight:
    return check_run(load_config(path, (*change.replace(" model", "\nmodel").splitlines(), *more)), 1)


@pytest.mark.parametrize("change", CHANGES)
def test_a_key_that_changes_the_function_and_no_shape_is_refused_in_the_plan(path: Path, change: str) -> None:
    [problem] = planned(path, change).problems
    assert "run@1 is of a model that computes something else" in problem.cause
    assert all(text in str(problem) for text in ("override", *CHANGES[change])), problem
    fork = planned(path, change, "train.run=other", "train.resume=run@1")
    if "rope" in change:
        assert not fork.problems
        assert CHANGES[change][0] in "".join(fork.warnings)
    else:
        assert [str(each.cause) for each in fork.problems] == [problem.cause]


def test_a_run_refuses_it_too_and_a_fork_may_change_the_rope(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_heads: 4, recorded 2"):
        run_ranks(train_here, 1, str(path), ("model.num_heads=4", "model.num_kv_heads=2"), timeout=120)
    fork = ("model.rope_theta=5e5", "train.run=branch", "train.resume=run@1", "train.steps=2")
    [branch] = run_ranks(train_here, 1, str(path), fork, timeout=120)
    assert (branch["first_step"], branch["complete"]) == (1, True)
    # The fork has its own record: from now on the old value is the change.
    [problem] = check_run(load_config(path, ("train.run=branch",)), 1).problems
    assert "rope_theta: 10000.0, recorded 500000.0" in str(problem)


def test_keys_that_leave_the_function_may_change(path: Path) -> None:
    free = ("model.dropout=0", "model.max_seq_len=96", "model.init_std=0.5", "model.attention_backend=eager")
    derived = ("model.head_dim=16", "model.hidden_dim=128", "model.vocab_size=272")
    assert not check_run(load_config(path, (*free, *derived)), 1).problems


def test_another_kind_of_model_and_fields_of_an_own_class_are_differences(path: Path) -> None:
    recorded = {"kind": "tests.helpers.own:Bigrams", "width": 8, "removed": 1}
    assert section_changes(Bigrams(), recorded) == {}
    assert section_changes(Bigrams(width=4), recorded) == {"width": (8, 4)}
    assert section_changes(ModelConfig(), recorded) == {"kind": ("tests.helpers.own:Bigrams", "decoder")}
    own = load_config(path, ("model={kind: 'tests.helpers.own:Bigrams', width: 4}",))
    meta = {"config": {"model": recorded}}
    with pytest.raises(ConfigError, match="width: 4, recorded 8"):
        refuse_model_changes(own, meta, "run@1", fork=False)
    assert "width: 4, recorded 8" in refuse_model_changes(own, meta, "run@1", fork=True)
    for fork in (False, True):
        with pytest.raises(ConfigError, match="kind"):
            refuse_model_changes(own, {"config": {"model": as_tree(ModelConfig())}}, "run@1", fork=fork)


def test_another_objective_is_warned_of(path: Path) -> None:
    found = check_run(load_config(path, ("objective={kind: 'tests.helpers.own:Weights', scale: 2}",)), 1)
    assert not found.problems
    assert any(
        "objective.kind: tests.helpers.own:Weights, checkpoint run@1 recorded next_token" in text
        for text in found.warnings
    )
