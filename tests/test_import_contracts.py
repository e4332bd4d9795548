"""The contracts on imports refuse what they forbid, in functions too, and nothing else."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("importlinter")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def lint(tmp_path):
    """Lints a toy package of files by path with the two contracts of this project; gives status and output."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    kinds = {contract["type"] for contract in settings["contracts"]}
    assert kinds >= {"public_doors", "acyclic_siblings"}

    def lint(**files):
        root = tmp_path / "toy"
        for package in ("", "a", "b", "b/_inner"):
            (root / package).mkdir(parents=True, exist_ok=True)
            (root / package / "__init__.py").touch()
        for path in ("a/one.py", "a/_two.py", "b/three.py", "b/_four.py", "b/_inner/five.py", "_six.py"):
            (root / path).touch()
        for name, text in files.items():
            (root / f"{name.replace('__', '/')}.py").write_text(text)
        (tmp_path / "scripts").mkdir(exist_ok=True)
        shutil.copy2(ROOT / "scripts/import_contracts.py", tmp_path / "scripts")
        (tmp_path / ".importlinter").write_text(
            "[importlinter]\nroot_package = toy\n"
            f"contract_types =\n    {settings['contract_types'][0]}\n"
            "[importlinter:contract:doors]\nname = doors\ntype = public_doors\n"
            "[importlinter:contract:circles]\nname = circles\ntype = acyclic_siblings\nancestors = toy\n"
        )
        command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [*command, "--no-cache"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )  # fmt: skip
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return lint


def test_what_is_ones_own_or_public_may_be_imported(lint):
    status, said = lint(
        a__one="from toy.a import _two\nfrom toy.b import three\nfrom toy import _six, b\n",
        b__three="from toy.b._four import x\nfrom toy.b._inner import five\n",
        b___four="x = 1\n",
    )
    assert status == 0, said
    assert "2 kept, 0 broken" in said


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a__one": "from toy.b import _four\n"}, "toy.a.one -> toy.b._four (l.1): toy.b._four is private to toy.b"),
        ({"a__one": "from toy.b._inner import five\n"}, "toy.b._inner.five is private to toy.b: import"),
        ({"a__one": "def f():\n    import toy.b._four\n"}, "toy.a.one -> toy.b._four (l.2)"),
        (
            {"_six": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.b._four import x\n"},
            "toy._six -> toy.b._four (l.3)",
        ),
        ({"b___four": "from toy.b import x\n"}, "toy.b._four -> toy.b (l.1): toy.b is the package it lies in"),
        ({"b___four": "def f():\n    import toy\n"}, "toy.b._four -> toy (l.2): toy is the package it lies in"),
    ],
)  # fmt: skip
def test_a_private_module_of_another_package_or_ones_own_package_is_refused(lint, files, told):
    status, said = lint(**files)
    assert status == 1
    assert told in said
    assert "doors BROKEN" in said
    assert "circles KEPT" in said


@pytest.mark.parametrize(
    ("files", "package"),
    [
        ({"a__one": "from toy.a import _two\n", "a___two": "def f():\n    from toy.a import one\n"}, "toy.a"),
        ({"a__one": "from toy.b import three\n", "b__three": "def f():\n    from toy import a\n"}, "toy"),
    ],
)
def test_a_circle_is_refused_where_a_function_closes_it(lint, files, package):
    status, said = lint(**files)
    assert status == 1
    assert "circles BROKEN" in said
    assert f"No cycles are allowed in {package}." in said
