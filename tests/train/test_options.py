"""A field of alternatives is chosen by its name and set field by field, in any order, and never half-heartedly."""

import json
from pathlib import Path

import pytest

from train import config, options, request, results, runner
from train.__main__ import main
from train.config import ConfigError

FAKE = Path(__file__).with_name("fake_study.py")
FAMILY = '''
from typing import Literal

@dataclass(frozen=True, kw_only=True)
class Descent:
    """How to descend: one of several ways, each with fields of its own."""

    decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"

    def __post_init__(self):
        if self.decay < 0:
            raise ValueError(f"`decay` must not be negative, got {self.decay}. Use 0 for none.")

    @staticmethod
    def choices():
        return {"plain": Plain, "heavy_ball": HeavyBall}


@dataclass(frozen=True, kw_only=True)
class Plain(Descent):
    """Down the gradient."""


@dataclass(frozen=True, kw_only=True)
class HeavyBall(Descent):
    """Down the gradient, with a memory.

    Attributes:
        memory: of the steps before.
        warmup_steps: until the rate is full.
    """

    memory: float = 0.9
    warmup_steps: int = 0
    is_damped: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.warmup_steps < 0:
            raise ValueError(f"`descent_rule.warmup_steps` must be 0 or more, got {self.warmup_steps}.")


@dataclass(frozen=True, kw_only=True)
class Descending(Fake):
    """Count layers on the way down."""

    descent_rule: Descent = Plain()


def get_config():
    return Descending()
'''


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A config file whose experiment has a field of alternatives."""
    path = tmp_path_factory.mktemp("study") / "descending.py"
    path.write_text(FAKE.read_text() + FAMILY)
    return path


def rule(path, *words):
    """The rule that a command line gives, resolved."""
    return config.resolved(request.parse([str(path), *words]).experiment)["descent_rule"]


PLAIN = {"type": "plain", "decay": 0.0, "schedule": "constant"}
BALL = {"type": "heavy_ball", "decay": 0.0, "schedule": "constant", "memory": 0.9}
BALL |= {"warmup_steps": 0, "is_damped": True}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), PLAIN),
        (("--descent-rule.schedule", "cosine"), PLAIN | {"schedule": "cosine"}),
        (("--descent-rule", "heavy_ball"), BALL),
        (("--descent-rule=heavy_ball",), BALL),
        (("--descent_rule", "plain", "--descent-rule", "heavy_ball"), BALL),
        (
            ("--descent-rule", "heavy_ball", "--descent-rule.memory", "0.5", "--descent-rule.decay", "2"),
            BALL | {"memory": 0.5, "decay": 2.0},
        ),
        (
            ("--descent-rule.warmup_steps=3", "--depths", "1", "2", "--descent-rule", "heavy_ball", "--rate", "1"),
            BALL | {"warmup_steps": 3},
        ),
        (("--descent-rule.no-is-damped", "--descent-rule", "heavy_ball"), BALL | {"is_damped": False}),
    ],
)  # fmt: skip
def test_an_alternative_is_chosen_and_set_in_any_order(study, words, expected):
    assert rule(study, *words) == expected


def test_a_choice_keeps_the_fields_that_all_choices_have(tmp_path):
    path = tmp_path / "decaying.py"
    default = 'Descending(descent_rule=Plain(decay=7.0, schedule="linear"))'
    path.write_text(FAKE.read_text() + FAMILY.replace("Descending()", default))
    assert rule(path) == PLAIN | {"decay": 7.0, "schedule": "linear"}
    kept = {"decay": 7.0, "schedule": "linear"}
    assert rule(path, "--descent-rule", "heavy_ball") == BALL | kept
    assert rule(path, "--descent-rule", "plain") == PLAIN | kept
    assert rule(path, "--descent-rule", "heavy_ball", "--descent-rule.decay", "1") == BALL | kept | {
        "decay": 1.0
    }


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (
            ("--descent-rule", "heavy-bal"),
            ["`descent_rule` must be one of plain, heavy_ball, got 'heavy-bal'. Did you mean heavy_ball?"],
        ),
        (("--descent-rule.schedule", "cosin"), ["--descent-rule.schedule", "'cosin'", "Did you mean cosine?"]),
        (("--descent-rule",), ["--descent-rule"]),
        (
            ("--descent-rule.memory", "0.5"),
            ["`descent_rule.memory` is a field of heavy_ball, not of plain. Use --descent-rule heavy_ball"],
        ),
        (("--descent-rule.no-is-damped",), ["`descent_rule.is_damped` is a field of heavy_ball"]),
        (
            ("--descent-rule.memory=0.5", "--descent-rule", "plain"),
            ["or one of its own fields: decay, schedule."],
        ),
        (("--descent-rule.deca", "1"), ["--descent-rule.deca", "Perhaps you meant", "--descent-rule.decay"]),
        (("--descent-rul.decay", "1"), ["--descent-rul.decay", "Perhaps you meant", "--descent-rule.decay"]),
        (
            ("--descent-rule.decay", "-1"),
            ["--descent-rule: `decay` must not be negative, got -1.0. Use 0 for none."],
        ),
        (
            ("--descent-rule", "heavy_ball", "--descent-rule.decay=-1"),
            ["--descent-rule: `decay` must not be negative, got -1.0. Use 0 for none."],
        ),
        (
            ("--descent-rule", "heavy_ball", "--descent-rule.warmup-steps", "-1"),
            ["error: `descent_rule.warmup_steps` must be 0 or more, got -1."],
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_says_what_can_and_writes_nothing(
    study, words, messages, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["run", str(study), *words])
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr().err
    assert status == 2
    for message in messages:
        assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [(), ("--descent-rule", "heavy_ball")])
def test_help_lists_the_alternatives_and_their_fields(study, words, capsys):
    with pytest.raises(SystemExit) as stop:
        request.parse([str(study), *words, "--help"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--descent-rule {plain,heavy_ball}" in said
    listed = "plain (decay, schedule); heavy_ball (decay, schedule, memory, warmup_steps, is_damped)"
    assert listed in said
    assert "--descent-rule.schedule {constant,cosine,linear}" in said
    assert ("--descent-rule.memory FLOAT" in said) == bool(words)
    assert ("of the steps before" in said) == bool(words)


def test_a_stored_choice_is_readable_and_repeated_by_its_command(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--descent-rule.memory", "0.5", "--smoke", "--descent-rule", "heavy_ball"]
    assert main(["run", str(study), "--workers", "0", *words]) == 0
    (directory,) = (tmp_path / "runs").iterdir()
    stored = results.load(directory / "result.nc")
    assert json.loads(stored.attrs["config"])["descent_rule"] == BALL | {"memory": 0.5}
    again = runner.read(directory).command.split()[4:]
    with pytest.raises(ConfigError) as refusal:
        runner.check_resumable(request.parse([*again, "--descent-rule.memory", "0.6"]).experiment, directory)
    assert "`descent_rule.memory` is 0.5 in the run and 0.6 now" in str(refusal.value)
    assert "`descent_rule.decay`" not in str(refusal.value)
    with pytest.raises(ConfigError) as refusal:
        runner.check_resumable(request.parse([str(study), "--smoke"]).experiment, directory)
    assert '`descent_rule.type` is "heavy_ball" in the run and "plain" now' in str(refusal.value)
    assert "`descent_rule.memory` is 0.5 in the run and absent now" in str(refusal.value)


def test_a_word_belongs_to_the_option_before_it():
    words = ["--rate", "2", "--activations", "tanh", "rleu", "--trouble=no", "--note", ""]
    assert [options._option_of(word, words) for word in ("rleu", "no", "", "absent", None)] == [
        "--activations",
        "--trouble",
        "--note",
        None,
        None,
    ]
