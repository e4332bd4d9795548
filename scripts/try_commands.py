"""Run every command line that the pages show, as a stranger would, in a clone of the checkout; CI does this.

python scripts/try_commands.py [PAGE...]     # minutes; PAGE: README.md, docs/start/compare.md, ...; all by default

Lines run in the order of their page and once each: studies with --smoke, launchers with --dry-run, sbatch by a stand-in
that runs its script, servers until they answer. What installs or clones is not run here: CI does so with its own lines.
"""

import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
#: a line of these is a command; other indented lines are formulas, or what a program prints
_PROGRAMS = re.compile(
    r"([A-Z_]+=\S+ )*((python3?|jaxact|pip|pytest|git|pre-commit|printf|sbatch|tensorboard|sphinx-build|ruff|mypy"
    r"|lint-imports)(?=\s|$)|scripts/)"
)
#: what installs, and what CI runs whole with lines of its own
_NOT_RUN = re.compile(
    r"pip install|git clone|python3 -m venv|pre-commit|(pytest|ruff|mypy|lint-imports|sphinx-build)\b"
)
#: what `sbatch` would do here: read its own options, then run the script
_SBATCH = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
exec bash "$1" --dry-run "${@:2}"
"""
#: the reader's own file, of a model for inputs of SIZE numbers
_MYMODULE = """
from flax import linen, nnx
import jax, jax.numpy as jnp

rngs = nnx.Rngs(0)
flat = lambda x: x.reshape(-1, SIZE) if x.size > SIZE else x.reshape(SIZE)
model = nnx.Sequential(flat, nnx.Linear(SIZE, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 10, rngs=rngs))

def make():
    net = linen.Dense(10)
    return net, net.init(jax.random.key(0), jnp.zeros((1, SIZE)))
"""


def pages() -> list[Path]:
    """README, CONTRIBUTING and the documentation's pages; those that a build makes run parts of the same studies."""
    kept = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    first = {"README.md": 0, "CONTRIBUTING.md": 1}
    found = [each for each in kept.stdout.splitlines() if each in first or each.startswith("docs/")]
    return [ROOT / each for each in sorted(found, key=lambda each: (first.get(each, 2), each))]


def commands(page: Path) -> Iterator[str]:
    """The command lines of a page's indented and fenced blocks."""
    for token in MarkdownIt().parse(page.read_text("utf-8")):
        if token.type == "code_block" or (token.type == "fence" and token.info.strip() in ("", "sh", "bash")):
            for line in token.content.replace("\\\n", " ").splitlines():
                if _PROGRAMS.match(line):
                    yield re.split(r"\s+#\s", line)[0].strip()


class Checkout:
    """A clone in which commands run, with what a reader would have put there.

    Attributes:
        folder: the clone.
    """

    def __init__(self, folder: Path):
        self.folder = folder / "jaxact"
        subprocess.run(["git", "clone", "--quiet", ROOT, self.folder], check=True)
        stand_ins = folder / "bin"
        stand_ins.mkdir()
        (stand_ins / "sbatch").write_text(_SBATCH)
        (stand_ins / "sbatch").chmod(0o755)
        self._environment = {
            **os.environ,
            "PATH": f"{stand_ins}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder / "cache")),
            "WANDB_MODE": "offline",
        }

    def run(self, line: str) -> str:
        """Run a line, and say how it was run; a SystemExit with its words where it fails."""
        steps = [each for each in line.split(" && ") if _PROGRAMS.match(each) and not _NOT_RUN.match(each)]
        if not steps:
            return f"not run here: {line}"
        return " && ".join(self._run_step(self._as_run_here(step)) for step in steps)

    def _as_run_here(self, step: str) -> str:
        """The line with its placeholders filled in, small."""
        step = re.sub(r"runs/(\w+)-(<id>|ID)", lambda found: str(self._newest(found[1])), step)
        if re.search(r"-m train run\b", step) and "--smoke" not in step:
            step += " --smoke"
        if step.startswith("scripts/"):
            step = re.sub(r"^(\S+)", r"\1 --dry-run", step)
        if size := re.search(r"mymodule:\w+.*--input-shape (\S+)", step):
            shape = [int(each) for each in size[1].split(",")]
            inputs = shape[1:] if "diagnose" in step else shape
            (self.folder / "mymodule.py").write_text(_MYMODULE.replace("SIZE", str(math.prod(inputs))))
        return step

    def _newest(self, study: str) -> Path:
        """The folder of the run that was started last."""
        found = sorted(self.folder.glob(f"runs/{study}-*"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise SystemExit(f"no run of {study} yet: its page resumes one before it starts one.")
        return found[-1].relative_to(self.folder)

    def _run_step(self, step: str) -> str:
        port = _free_port()
        if "HOST:6379" in step:
            self._finish(self._start(f"ray start --head --port={port}"), step)
            try:
                self._finish(self._start(step.replace("HOST:6379", f"127.0.0.1:{port}")), step)
            finally:
                self._finish(self._start("ray stop --force"), step)
        elif "HOST:PORT" in step:
            line = step.replace("HOST:PORT", f"127.0.0.1:{port}")
            hosts = [self._start(re.sub(r"--process-id \d", f"--process-id {each}", line)) for each in (0, 1)]
            for each in hosts:
                self._finish(each, step)
        elif step.startswith("tensorboard "):
            self._answers(self._start(f"{step} --port {port}"), port, step)
        else:
            self._finish(self._start(step), step)
        return step

    def _start(self, line: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            line, shell=True, executable="/bin/bash", cwd=self.folder, env=self._environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def _finish(self, process: subprocess.Popen[str], line: str) -> None:
        try:
            said, _ = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise SystemExit(f"{line}\nran for more than 600 s.") from None
        if process.returncode:
            raise SystemExit(f"{line}\nended with status {process.returncode}:\n{said[-4000:]}")

    def _answers(self, process: subprocess.Popen[str], port: int, line: str) -> None:
        """Wait until a server gives a page, and end it."""
        try:
            for _ in range(120):
                time.sleep(0.5)
                if process.poll() is not None:
                    self._finish(process, line)
                    raise SystemExit(f"{line}\nended before it answered.")
                try:
                    with urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                        if answer.status == 200:
                            return
                except OSError:
                    continue
            raise SystemExit(f"{line}\ndid not answer within a minute.")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


def main() -> None:
    """Run the lines of the pages named on the command line, or of all."""
    chosen = [ROOT / each for each in sys.argv[1:]] or pages()
    known: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch:
        checkout = Checkout(Path(scratch))
        for page in chosen:
            for line in commands(page):
                if line in known:
                    continue
                known.add(line)
                start = time.monotonic()
                told = checkout.run(line)
                print(f"{time.monotonic() - start:5.1f} s  {page.relative_to(ROOT)}: {told}", flush=True)


if __name__ == "__main__":
    main()
