"""Numbers for TensorBoard and W&B: read back from the event files, and from the calls that a stub of wandb gets."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from event_files import events

from train import loggers, request, results

FAKE = Path(__file__).with_name("fake_study.py")
STEPS = [10, 20, 30]


@pytest.fixture
def study(tmp_path):
    """A study that measures curves of six networks a cell, and draws a figure."""
    text = FAKE.read_text()
    text = text.replace('"second_moment": (', '"loss": ((*axes, "seed", "step"), np.arange(6.0).reshape(1, 1, 2, 3)),'
        '"best": ((*axes, "seed"), [[[0.5, 0.75]]]), "second_moment": (')  # fmt: skip
    text = text.replace('"layer": layer}', '"layer": layer, "seed": [0, 1], "step": [10, 20, 30]}')
    text = text.replace("return {}", 'import altair as alt; return {"one": alt.Chart('
        'pd.DataFrame({"x": [1, 2]})).mark_point().encode(x="x:Q")}')  # fmt: skip
    (tmp_path / "study.py").write_text(text)
    return tmp_path / "study.py"


def only_run(tmp_path):
    (directory,) = (tmp_path / "runs").iterdir()
    return directory


def stub():
    """A module of the calls of wandb that are made, which notes them."""
    module, calls = ModuleType("wandb"), []

    def noted(name):
        return lambda *args, **options: calls.append((name, args, options))

    def init(**options):
        calls.append(("init", (), options))
        return SimpleNamespace(log=noted("log"), define_metric=noted("define_metric"), finish=noted("finish"))

    module.init, module.calls = init, calls
    module.api = SimpleNamespace(api_key=None)
    module.Settings = lambda **options: options
    module.Html = lambda text, inject: ("html", text)
    return module


def test_tensorboard_gets_curves_final_values_and_figures_and_a_resumed_run_repeats_none(
    call, study, tmp_path
):
    assert call("run", study, "--tensorboard", "--workers", "0")[0] == 0
    directory = only_run(tmp_path)
    folder = directory / "tensorboard"
    assert sorted(path.name for path in folder.iterdir()) == [
        "cells.txt", "figures", "relu_depth=2", "relu_depth=4", "tanh_depth=2", "tanh_depth=4",
    ]  # fmt: skip
    cell = results.load(directory / "cells" / "relu_depth=2.nc").isel(activation=0, depth=0)
    for seed in (0, 1):
        found = events(folder / "relu_depth=2" / f"seed={seed}")
        expected = {("loss", step): float(cell["loss"].sel(seed=seed, step=step)) for step in STEPS}
        assert found == {**expected, ("best", 30): float(cell["best"].sel(seed=seed))}
    whole = events(folder / "relu_depth=2" / "cell")
    assert whole["num_parameters", 30] == 20
    assert not any(tag == "second_moment" for tag, _ in whole)  # along layers
    image = events(folder / "figures")["one", 0]
    assert image.encoded_image_string == (directory / "figures" / "one.png").read_bytes()
    assert image.width > 20
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*_depth*/*/*")}
    (directory / "result.nc").unlink()
    (directory / "cells" / "tanh_depth=4.nc").unlink()
    assert call("resume", directory)[0] == 0  # with the words that began it
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*_depth*/*/*")} == before


def test_a_folder_may_be_given_and_cells_that_are_kept_are_told_as_well(call, study, tmp_path):
    assert call("run", study, "--workers", "0")[0] == 0
    directory = only_run(tmp_path)
    assert call("resume", directory, "--tensorboard", "there", "--workers", "0")[0] == 0
    folder = tmp_path / "there" / directory.name
    assert len(list(folder.glob("*_depth=*"))) == 4
    torn = next((folder / "tanh_depth=4" / "seed=0").iterdir())
    torn.write_bytes(b"begun")
    (folder / "cells.txt").write_text("tanh_depth=2\nrelu_depth=2\nrelu_depth=4\n")  # killed while it wrote
    assert call("resume", directory, "--tensorboard", "there", "--workers", "0")[0] == 0
    assert len(events(folder / "tanh_depth=4" / "seed=0")) == 4


def test_wandb_gets_a_row_a_step_offline_unless_there_is_a_key(call, study, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", module := stub())
    code, out, _ = call(
        "run", study, "--wandb", "mine", "--workers", "0", "--depths", "2", "--activations", "tanh"
    )
    directory = only_run(tmp_path)
    assert code == 0
    assert "W&B, offline: wandb sync runs/" in out
    (_, _, begun), *_ = module.calls
    assert (begun["project"], begun["mode"], begun["resume"]) == ("mine", "offline", "allow")
    assert (begun["name"], begun["config"]["depths"]) == (directory.name, [2])
    rows = [args[0] for name, args, _ in module.calls if name == "log"]
    assert [row["optimiser_step"] for row in rows[:-1]] == STEPS
    assert [row["loss/tanh_depth=2/seed=1"] for row in rows[:-1]] == [3.0, 4.0, 5.0]
    assert (rows[2]["best/tanh_depth=2/seed=0"], rows[2]["num_parameters/tanh_depth=2"]) == (0.5, 20)
    assert rows[-1]["figures/one"] == ("html", (directory / "figures" / "one.svg").read_text())
    assert "</html>" in rows[-1]["report"][1]
    assert module.calls[-1][0] == "finish"
    module.api.api_key = "a key"
    call("run", study, "--wandb", "--workers", "0", "--output", "others")
    assert [each[2]["mode"] for each in module.calls if each[0] == "init"] == ["offline", "online"]
    assert [each[2]["project"] for each in module.calls if each[0] == "init"] == ["mine", "study"]


@pytest.mark.parametrize(("extra", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_without_the_package_nothing_is_begun(call, tmp_path, monkeypatch, extra, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = call("run", FAKE, f"--{extra}")
    assert code == 2
    assert f"error: --{extra} needs {package}, which cannot be imported" in err
    assert f"pip install 'jaxact[{extra}]'" in err
    assert not (tmp_path / "runs").exists()


def test_a_logger_that_fails_is_told_once_and_the_run_goes_on(call, study, tmp_path, monkeypatch):
    module = stub()
    module.Html = lambda text, inject: 1 / 0
    monkeypatch.setitem(sys.modules, "wandb", module)
    (tmp_path / "there").write_text("a file, not a folder")
    code, out, _ = call("run", study, "--tensorboard", "there", "--wandb", "--workers", "0")
    assert code == 0
    assert out.count("TensorBoard fails: ") == 1
    assert out.count("WandB fails: division by zero. The run goes on without it.") == 1
    assert (only_run(tmp_path) / "result.nc").exists()


def test_curves_are_told_apart_by_networks_and_phases_not_by_layers():
    dims = ("depth", "rate", "phase")
    part = xr.Dataset(
        {
            "loss": (("step", "depth", "rate"), np.arange(6.0).reshape(3, 1, 2)),
            "bound": (dims, [[[1.0, 2.0], [3.0, np.nan]]]),
            "norm": ((*dims, "layer"), np.zeros((1, 2, 2, 4))),
            "name": (("depth",), ["deep"]),
        },
        {
            "depth": [8],
            "rate": [0.1, 0.2],
            "phase": ["initial", "trained"],
            "layer": [1, 2, 3, 4],
            "step": STEPS,
        },
    )
    found = {(each.name, each.member): each for each in loggers.curves_of(part, ["depth"], [])}
    assert sorted(found) == [
        ("bound", "rate=0.1/phase=initial"), ("bound", "rate=0.1/phase=trained"),
        ("bound", "rate=0.2/phase=initial"), ("bound", "rate=0.2/phase=trained"),
        ("loss", "rate=0.1"), ("loss", "rate=0.2"),
    ]  # fmt: skip
    assert found["loss", "rate=0.2"].values.tolist() == [1.0, 3.0, 5.0]
    assert found["bound", "rate=0.2/phase=initial"].steps.tolist() == [30]
    assert found["bound", "rate=0.2/phase=initial"].values.tolist() == [3.0]


def test_names_that_no_folder_may_have_stay_apart(tmp_path):
    board = loggers.TensorBoard(tmp_path)
    members = ["task=../a", "task=.. a", "task=" + "x" * 300]
    one = (np.array([1]), np.array([2.0]))
    board.cell("all", [loggers.Curve("loss", member, *one) for member in members])
    folders = list((tmp_path / "all").iterdir())
    assert len(folders) == 3
    assert all(events(folder) == {("loss", 1): 2.0} for folder in folders)


def test_a_value_of_the_options_may_be_left_out():
    for words, expected in {
        ("--tensorboard",): ("auto", "none"),
        ("--tensorboard", "--wandb", "mine"): ("auto", "mine"),
        ("--tensorboard=here", "--wandb", "--rate", "1"): ("here", "auto"),
        ("--tensorboard", "--tensorboard", "none"): ("none", "none"),
        (): ("none", "none"),
    }.items():
        asked = request.parse([str(FAKE), *words])
        assert (asked.tensorboard, asked.wandb) == expected
