"""The wheel holds the library alone and imports in a clean environment; packages come when they are asked for."""

import ast
import os
import re
import runpy
import signal
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from packaging.requirements import Requirement

import jaxact

ROOT = Path(__file__).parents[1]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPT = EntryPoint("jaxact", DECLARED["scripts"]["jaxact"], "console_scripts")


def python(code, **environment):
    """Run a text in a new process, in the manner of a user's program."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in environment}
        | {k: v for k, v in environment.items() if v is not None},
    )


def test_the_wheel_installs_and_imports_in_a_clean_environment(tmp_path):
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*command):
        words = [str(part) for part in command]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=outside)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name == "jaxact/py.typed" for name in names)
    assert not [name for name in names if name.startswith(("train/", "tests/", "configs/", "scripts/"))]
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    link_what_it_needs(environment)
    script = "import jaxact; from jaxact import *; print(jaxact.__version__, jaxact.nn.__file__)"
    version, _, path = run(python, "-I", "-c", script).partition(" ")
    assert version == DECLARED["version"]
    assert str(environment) in path
    assert run(environment / "bin" / "jaxact", "list") == run(python, "-m", "jaxact", "list")


def link_what_it_needs(environment):
    """Have an environment see what its wheel depends on, and that in turn, and nothing else that is installed here."""
    (there,) = environment.glob("lib/python*/site-packages")
    (wheel,) = metadata.distributions(name="jaxact", path=[str(there)])
    waiting, linked = [(need, "") for need in wheel.requires], set()
    while waiting:
        need, extra = waiting.pop()
        need = Requirement(need)
        if need.marker and not need.marker.evaluate({"extra": extra}):
            continue
        installed = metadata.distribution(need.name)
        assert need.specifier.contains(installed.version), need
        for each in {(need.name, extra) for extra in ("", *need.extras)} - linked:
            linked.add(each)
            waiting += [(further, each[1]) for further in installed.requires or ()]
        for top in {file.parts[0] for file in installed.files} - {"..", "__pycache__"}:
            if not (there / top).exists():
                (there / top).symlink_to(installed.locate_file(top))


def test_the_readmes_snippets_run(capsys):
    names = run_blocks(ROOT / "README.md", "python")
    assert "weight scale at layers[0].kernel and 29 more" in capsys.readouterr().out
    assert names["certificate"].value > 0


def test_the_readmes_story_prints_what_the_readme_says(tmp_path, capsys):
    text = (ROOT / "README.md").read_text()
    (block,) = [each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Deep" in each]
    (tmp_path / "story.py").write_text(block)
    runpy.run_path(str(tmp_path / "story.py"))
    printed = " ".join(capsys.readouterr().out.split())
    (told,) = re.findall(r"^    \[9.*?(?=\n\n)", text, re.DOTALL | re.MULTILINE)
    for part in " ".join(told.split()).split(" ... "):
        pattern = re.sub(r"0\\\.\d{3}", r"0\\.\\d+", re.escape(part))  # the third digit is the platform's
        assert re.search(pattern, printed), pattern


def test_the_parts_in_a_model_of_ones_own_run():
    names = run_blocks(ROOT / "docs" / "howto" / "own_models.md", "{code-cell}")
    check_layer_is_critical_for_tanh(names["layer"], q=0.1)
    assert names["history"].loss.shape == (4, 10)


def test_the_dataset_of_the_guide_is_one():
    rings = run_blocks(ROOT / "CONTRIBUTING.md", "python")["Rings"]
    assert str(rings()) == "rings"
    with pytest.raises(ValueError, match="noise"):
        rings(noise=-1)


def run_blocks(path, language):
    blocks = re.findall(rf"```{re.escape(language)}\n(.*?)```", path.read_text(), re.DOTALL)
    assert blocks
    names = {"__name__": "blocks"}
    exec("\n".join(blocks), names)
    return names


def check_layer_is_critical_for_tanh(layer, q):
    """The README's layer, by Gauss-Hermite quadrature and what was drawn."""
    kernel, bias = (np.asarray(part[...], float) for part in (layer.kernel, layer.bias))
    z, weights = np.polynomial.hermite_e.hermegauss(80)
    f = np.tanh(q**0.5 * z)
    variance = weights.sum() / (weights @ (1 - f**2) ** 2)
    np.testing.assert_allclose(kernel.T @ kernel, variance * np.eye(len(bias)), atol=1e-5)
    missing = q - variance * (weights @ f**2) / weights.sum()
    assert np.mean(bias**2) == pytest.approx(missing, rel=4 * (2 / bias.size) ** 0.5)


@pytest.mark.parametrize("name", ["activations", "cache", "fit", "lipschitz", "numerics", "probes", "theory"])
def test_a_package_comes_when_it_is_asked_for_and_without_flax(name):
    done = python(
        "import sys, jaxact\n"
        f"assert 'jax' not in sys.modules and {name!r} not in vars(jaxact)\n"
        f"assert jaxact.{name} is sys.modules['jaxact.{name}']\n"
        "assert 'flax' not in sys.modules and 'jaxact.nn' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_library_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import jaxact"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "jaxact" in imported
    assert not imported & {"jax", "jaxlib", "numpy", "scipy", "flax", "jaxtyping"}


def test_the_top_lists_its_packages_and_has_no_other_attributes():
    packages = {path.parent.name for path in (ROOT / "jaxact").glob("[a-z]*/__init__.py")}
    modules = {path.stem for path in (ROOT / "jaxact").glob("[a-z]*.py")}
    functions = {name for name in jaxact.__all__ if not isinstance(getattr(jaxact, name), ModuleType)}
    assert functions == {"diagnose", "initialize"}
    assert set(jaxact.__all__) == packages | modules | functions
    assert {*jaxact.__all__, "__version__", "__doc__"} <= set(dir(jaxact))
    with pytest.raises(AttributeError, match="module 'jaxact' has no attribute 'activation'"):
        jaxact.activation  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'activation'"):
        from jaxact import activation  # noqa: F401


def test_type_checkers_see_what_the_top_lists():
    tree = ast.parse((ROOT / "jaxact" / "__init__.py").read_text())
    (known,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in known.body if isinstance(node, ast.ImportFrom)]
    assert sorted(name.name for each in imports for name in each.names) == jaxact.__all__


def test_the_version_of_a_bare_checkout_is_the_one_that_it_would_install():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import jaxact; print(jaxact.__version__)"
    # Without site-packages, and so without what is installed there.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == DECLARED["version"]


@pytest.mark.parametrize("words", [[], ["list"], ["describe", "xyzzy"], ["--help"]])
def test_the_script_does_what_the_module_does(words):
    started = f"import sys; sys.argv = ['/somewhere/bin/jaxact', *{words!r}]\n"
    script = python(started + f"from importlib.metadata import EntryPoint\n{SCRIPT!r}.load()()")
    module = subprocess.run(
        [sys.executable, "-m", "jaxact", *words], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert script.returncode == module.returncode
    same = module.stdout.replace("usage: python -m jaxact", "usage: jaxact")
    assert script.stdout == re.sub("^  python -m jaxact", "  jaxact", same, flags=re.MULTILINE)
    assert script.stderr == module.stderr
    assert bool(words) or script.stdout.startswith("usage: jaxact ")


def test_the_script_keeps_what_it_compiles_and_ends_at_ctrl_c(heard_signals, tmp_path):
    started = (
        "import jaxact.__main__ as program, os, signal\n"
        "def main():\n"
        "    print(os.environ['JAX_COMPILATION_CACHE_DIR'], os.environ['JAX_PLATFORMS'])\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "program.main = main\n"
        f"from importlib.metadata import EntryPoint\n{SCRIPT!r}.load()()"
    )
    done = python(started, JAX_COMPILATION_CACHE_DIR=None, JAX_PLATFORMS=None, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 128 + signal.SIGINT
    assert done.stdout.split() == [str(tmp_path / "jaxact" / "xla"), "cpu"]
    assert "Traceback" not in done.stderr


def test_no_module_imports_itself_through_others():
    """Imports at the top of a module and inside its functions; strongly connected modules are a circle."""
    files = {_module(path): path for path in (ROOT / "jaxact").rglob("*.py")}
    needs = {name: _imported(path, files) - {name} for name, path in files.items()}
    while leaves := {name for name, others in needs.items() if not others}:
        needs = {name: others - leaves for name, others in needs.items() if name not in leaves}
    # What is left imports, or is imported, in a circle.
    assert not needs, f"circles among or above {needs}"


def _module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path, files):
    """Modules that a file imports, those for type checkers alone left out."""
    found, nodes = set(), list(ast.walk(ast.parse(path.read_text())))
    guards = [n for n in nodes if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {node for guard in guards for statement in guard.body for node in ast.walk(statement)}
    for node in nodes:
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {
                each if (each := f"{node.module}.{a.name}") in files else node.module for a in node.names
            }
    return found & set(files)
