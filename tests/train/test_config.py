import dataclasses
import enum
import functools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxact import activations
from train import config
from train.config import ConfigError

FAKE = Path(__file__).with_name("fake_study.py")


@pytest.fixture
def write(tmp_path):
    def write(text, name="study.py"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_a_config_file_gives_its_experiment():
    experiment = config.load(FAKE)
    assert experiment.depths == (4, 2)
    assert config.type_name(experiment, FAKE) == "config:Fake"


def test_a_missing_config_names_those_that_are_there(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    for name in ("depth_sweep.py", "width_sweep.py", "_helper.py"):
        (tmp_path / "configs" / name).write_text(
            '"""What it asks.\n\nMore."""\nraise SystemExit("imported")\n'
        )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"configs/dept_sweep\.py does not exist\. Did you mean configs/depth_sweep"
    ):
        config.load("configs/dept_sweep.py")
    with pytest.raises(ConfigError, match=r"depth_sweep does not exist.*configs/depth_sweep\.py"):
        config.load("depth_sweep")
    with pytest.raises(
        ConfigError, match=r"configs is not a Python file.*depth_sweep\.py or configs/width_sweep\.py"
    ):
        config.load("configs")
    assert config.find() == {
        Path("configs/depth_sweep.py"): "What it asks.",
        Path("configs/width_sweep.py"): "What it asks.",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x = 1\nimport no_such_module\n",
            r"does not import\.\n  line 2: import no_such_module\n  ModuleNotFound",
        ),
        ("x = 1\ndef get_config(:\n", r"does not import\.\n  line 2: def get_config\(:\n  SyntaxError"),
        ("def get_config():\n    return 1 / 0\n", r"failed\.\n  line 2: return 1 / 0\n  ZeroDivisionError"),
        ("def config():\n    return 1\n", "defines no function `get_config`"),
        (
            "def get_config():\n    return {'depths': 3}\n",
            r"returned \{'depths': 3\} \(dict\), not an experiment",
        ),
        (
            "class A: pass\ndef get_config():\n    return A\n",
            r"returned the class A, not an instance. Call it: A\(\)",
        ),
        (
            "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass A:\n    def run(self): 0\n"
            "def get_config():\n    return A()\n",
            "returned a A, which lacks smoke, cells, figures, findings, tables",
        ),
        (
            FAKE.read_text().replace("@dataclass(frozen=True, kw_only=True)", "@dataclass"),
            r"returned a Fake, which can be changed\. Decorate it: @dataclass\(frozen=True\)",
        ),
        (
            FAKE.read_text().replace("return Fake()", "return Fake(depths=(4, 0))"),
            r"line \d+: raise ValueError.*\n  ValueError: `depths` must be positive, got 0",
        ),
    ],
)
def test_a_config_that_gives_no_experiment_says_where_and_why(write, text, message):
    path = write(text)
    with pytest.raises(ConfigError, match=message) as failure:
        config.load(path)
    assert str(path) in str(failure.value)


def test_a_config_that_fails_leaves_no_module_behind(write):
    before = set(sys.modules)
    with pytest.raises(ConfigError):
        config.load(write("raise RuntimeError\n", "failing.py"))
    assert set(sys.modules) == before


def test_resolved_fields_survive_json_and_tell_experiments_apart(monkeypatch):
    experiment = config.load(FAKE)
    fields = config.resolved(experiment)
    assert fields["activations"] == ["tanh", "relu"]
    assert json.loads(json.dumps(fields)) == fields == config.resolved(config.load(FAKE))
    other = dataclasses.replace(
        experiment, depths=(4, 3), activations=(activations.parse("leaky_relu(0.3)"),)
    )
    assert config.differences(fields, config.resolved(other)) == [
        '`activations` is ["tanh", "relu"] in the run and ["leaky_relu(0.3)"] now',
        "`depths` is [4, 2] in the run and [4, 3] now",
    ]
    assert config.differences(fields, fields) == []
    assert config.differences({"a": 1}, {"b": 2}) == [
        "`a` is 1 in the run and absent now",
        "`b` is absent in the run and 2 now",
    ]


def test_every_kind_of_field_has_a_json_form():
    class Order(enum.Enum):
        PRE = 1

    @dataclasses.dataclass(frozen=True)
    class Block:
        norm: str = "bn"

    @dataclasses.dataclass(frozen=True)
    class Everything:
        a: object = None
        b: object = float("nan")
        c: object = (np.float32(0.5), np.int64(2), np.arange(2))
        d: object = Path("x/y")
        e: object = Order.PRE
        f: object = Block()
        g: object = config.load
        h: object = functools.partial(int, base=2)
        i: object = frozenset({"b", "a"})
        j: object = dataclasses.field(default_factory=lambda: {1: True})

    fields = config.resolved(Everything())
    assert json.loads(json.dumps(fields)) == fields
    assert not re.search("0x[0-9a-f]", json.dumps(fields))
    expected = {
        "a": None,
        "b": "nan",
        "c": [0.5, 2, [0, 1]],
        "d": "x/y",
        "e": "PRE",
        "g": "train.config:load",
        "i": ["a", "b"],
        "j": {"1": True},
    }
    assert {name: fields[name] for name in expected} == expected
    assert fields["f"]["norm"] == "bn"


def test_a_type_is_found_again_in_the_run_folder(tmp_path):
    (tmp_path / "config.py").write_text(FAKE.read_text())
    kind = config.import_type("config:Fake", tmp_path, trust=True)
    assert kind().depths == config.load(FAKE).depths


@pytest.mark.parametrize("name", ["os:system", "train.config:load", "config:a.b", "train.experiments.x", ""])
def test_only_experiments_are_imported_by_name(tmp_path, name):
    with pytest.raises(ConfigError, match="not one this program imports"):
        config.import_type(name, tmp_path)


def test_a_type_that_is_gone_names_the_version_to_use(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be imported.*git_commit"):
        config.import_type("train.experiments.no_such:Study", tmp_path)
    (tmp_path / "config.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"cannot be imported.*git_commit"):
        config.import_type("config:Study", tmp_path, trust=True)
    with pytest.raises(ConfigError, match="is no experiment"):
        config.import_type("train.experiments.depth_sweep:np", tmp_path)


def test_a_type_that_a_report_could_not_find_again_is_refused(write):
    path = write(
        FAKE.read_text().replace("return Fake()", "class Hidden(Fake):\n        pass\n    return Hidden()")
    )
    with pytest.raises(ConfigError, match=r"cannot be found again.*top level"):
        config.type_name(config.load(path), path)
    with pytest.raises(ConfigError, match="cannot be found again"):
        config.type_name(config.load(FAKE), path)
