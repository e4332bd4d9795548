"""The wheel holds the library alone and imports in a clean environment; the README's snippets run."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_installs_and_imports_in_a_clean_environment(tmp_path):
    def run(*command):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name == "jaxact/py.typed" for name in names)
    assert not [name for name in names if name.startswith(("train/", "tests/", "configs/", "scripts/"))]
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel, "--constraint", ROOT / "constraints.txt")
    floors = "activations, fit, lipschitz, nn, numerics, probes, theory"
    script = f"import jaxact; from jaxact import {floors}; print(jaxact.__file__)"
    assert str(environment) in run(python, "-I", "-c", script)


def test_the_readmes_snippets_run():
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 3
    exec("\n".join(blocks), {})
