"""The words of a command line become the experiment they ask for, or a message that says what is wrong."""

from pathlib import Path

import pytest

from jaxact import activations
from train import config, request
from train.__main__ import main
from train.optimizers import Adam, AdamW, Lion, Muon, Sgd
from train.tasks import GaussianMixture

SWEEP = Path(__file__).parents[2] / "configs" / "depth_sweep.py"


def parsed(*words):
    return request.parse([str(SWEEP), *words]).experiment


def test_optimizer_and_network_of_a_smoke_run():
    asked = request.parse([str(SWEEP), "--optimizer", "adamw", "--network", "conv", "--smoke"])
    default, study = config.load(SWEEP).smoke(), asked.experiment
    assert asked.smoke
    assert study.optimizer == AdamW()
    assert study.network == "conv"
    assert type(study) is type(default)
    assert {name for name, value in vars(study).items() if value != getattr(default, name)} == {
        "optimizer",
        "network",
    }
    assert study.num_steps <= 20
    assert asked.command.endswith("depth_sweep.py --optimizer adamw --network conv --smoke")


@pytest.mark.parametrize(
    ("words", "optimizer"),
    [
        ([], Sgd()),
        (["--optimizer.nesterov"], Sgd(nesterov=True)),
        (["--optimizer.momentum", "0"], Sgd(momentum=0.0)),
        (["--optimizer.schedule", "cosine", "--optimizer", "adam"], Adam(schedule="cosine")),
        (["--optimizer", "adamw", "--optimizer.weight-decay", "0.1"], AdamW(weight_decay=0.1)),
        (["--optimizer", "lion", "--optimizer.clip-norm", "1"], Lion(clip_norm=1.0)),
        (["--optimizer", "muon", "--optimizer.warmup-steps", "20"], Muon(warmup_steps=20)),
        (["--optimizer", "sgd", "--optimizer.clip-norm", "None"], Sgd()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_optimizer_is_chosen_by_name_and_set_by_field(words, optimizer):
    assert parsed(*words).optimizer == optimizer


def test_fields_of_all_kinds():
    study = parsed(
        "--depths", "8", "128", "--activations", "tanh", "leaky_relu(0.3)", "--learning-rates", "0.5", "--seeds", "4",
        "--blocks", "plain-rms", "--task", "gaussian_mixture(num_classes=3)", "--sigma_w", "1.5", "--width", "7",
    )  # fmt: skip
    assert study.depths == (8, 128)
    assert study.activations == (activations.tanh, activations.parse("leaky_relu(0.3)"))
    assert (study.learning_rates, study.seeds, study.blocks) == ((0.5,), (4,), ("plain-rms",))
    assert study.task == GaussianMixture(num_classes=3)
    assert (study.sigma_w, study.width) == (1.5, 7)


BAD = [
    (["--optimizer", "adamm"], ["`optimizer` must be one of", "'adamm'", "Did you mean"]),
    (["--optimizer.momentum", "1"], ["`optimizer.momentum` must be in [0, 1), got 1.0"]),
    (["--optimizer.momentum", "much"], ["--optimizer.momentum", "much"]),
    (["--optimizer", "adam", "--optimizer.momentum", "0.5"], ["`optimizer.momentum` is a field of sgd, muon"]),
    (["--optimizer.schedule", "cosin"], ["schedule", "'cosin'", "cosine"]),
    (["--optimizer", "adamw", "--optimizer.weight-decay", "-1"], ["`optimizer.weight_decay` must be finite", "-1.0"]),
    (["--optimizer.clip-norm", "0"], ["`optimizer.clip_norm` must be positive", "0.0"]),
    (["--optimizer.warmup-steps", "-1"], ["`optimizer.warmup_steps` must be 0 or more, got -1"]),
    (["--optimizer.warmup-steps", "200"], ["`optimizer.warmup_steps` must be less than num_steps = 200, got 200"]),
    (["--optimizer.nesterov", "--optimizer.momentum", "0"], ["`optimizer.nesterov` needs a momentum above 0"]),
    (["--optimizer.moment", "0.5"], ["--optimizer.moment", "--optimizer.momentum"]),
    (["--network", "cnov"], ["`network` must be among dense, conv, got 'cnov'. Did you mean 'conv'?"]),
    (["--network", "conv", "--task", "gaussian_mixture"], ["`task` must hold images", "cifar10 or digits"]),
    (["--task", "digit"], ["digit", "digits"]),
    (["--task", "digits(num_train=0)"], ["num_train"]),
    (["--blocks", "plian"], ["`blocks` must be among", "Did you mean 'plain'?"]),
    (["--blocks", "plain", "plain"], ["`blocks` must not repeat a value, got plain twice"]),
    (["--activations", "rleu"], ["--activations", "'rleu'", "relu"]),
    (["--activations", "leaky_relu(x)"], ["--activations: `a` of leaky_relu must be a number, got 'x'"]),
    (["--activations"], ["`activations` must hold at least one value"]),
    (["--activations", "relu", "relu"], ["`activations` must not repeat a value, got relu twice"]),
    (["--depths", "0"], ["`depths` must be positive integers, got 0"]),
    (["--depths", "many"], ["--depths", "many"]),
    (["--depths", "8", "--max-depth", "4"], ["`depths` must not exceed max_depth = 4, got 8"]),
    (["--seeds", "-1"], ["`seeds` must lie between 0 and 2**31 - 1, got -1"]),
    (["--learning-rates", "0"], ["`learning_rates` must be positive and finite, got 0.0"]),
    (["--learning-rates", "nan"], ["`learning_rates` must be positive and finite, got nan"]),
    (["--sigma-w", "-1"], ["`sigma_w` must be positive and finite, got -1.0"]),
    (["--sigma-b", "-1"], ["`sigma_b` must be finite and not negative, got -1.0"]),
    (["--threshold", "90"], ["`threshold` is an accuracy in (0, 1], got 90.0"]),
    (["--width", "0"], ["`width` must be a positive integer, got 0"]),
    (["--num-steps", "25"], ["`measure_every` must divide num_steps = 25, got 10. Use --num-steps 20."]),
    (["--num-step", "25"], ["--num-step", "--num-steps"]),
    (["--momentum", "0.9"], ["--momentum"]),
    (["--smoke", "--num-steps", "7"], ["`measure_every` must divide num_steps = 7"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "messages"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_what_cannot_be_run_says_why_and_writes_nothing(words, messages, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["run", str(SWEEP), *words])
    except SystemExit as stop:
        status = stop.code
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert status == 2
    for message in messages:
        assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ([], 60.0),
        (["30"], 30.0),
        (["1.5s"], 1.5),
        (["5m"], 300.0),
        (["1h"], 3600.0),
        (["0"], 0.0),
    ],
)
def test_times_between_checkpoints_have_units(words, seconds):
    words = [f"--checkpoint-every={word}" for word in words]
    assert request.parse([str(SWEEP), *words]).checkpoint_every == seconds


@pytest.mark.parametrize("word", ["soon", "-1", "5 days", "", "nan"])
def test_what_is_no_time_between_checkpoints_is_refused_by_name(word):
    with pytest.raises(config.ConfigError, match="`checkpoint_every` must be a time above 0, such as 90"):
        request.parse([str(SWEEP), f"--checkpoint-every={word}"])
