"""How the tests hold annotations; how they compile, fast rather than well, as they run little; how they multiply."""

import contextlib
import gc
import os
import signal
from pathlib import Path

# What tests compare with is full float32 on a GPU or TPU too; that jaxact is so by itself test_precision.py shows.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "float32")  # read when jax is imported
# LAPACK by one thread: a second one spins while the other process of tests has the core, for up to forty times as long.
# Read when scipy is imported, and by the processes of pytest-xdist.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest
import typecheck

typecheck.install("jaxact")

from jaxact import xla  # noqa: E402 - after what holds it

# To compile well would take more than half of the time. Read when jax first compiles; children inherit it.
xla.compile_fast(0)
MOST_MEMORY = 3 * 2**30  # of a process, from which on programs are given back between two files


def pytest_configure(config):
    """Keep compiled programs for the next session, half of whose time they are; children have caches of their own."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    with contextlib.suppress(AttributeError, OSError):  # -p no:cacheprovider, a checkout that is read-only
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("xla")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_finish():
    """What was imported stays: the collector need not look at it again, nor at the rest after every 700 objects."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Two thousand programs take gigabytes; those that later files call again are kept on disk."""
    yield
    with contextlib.suppress(OSError):  # where the system tells it otherwise
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        if pages * os.sysconf("SC_PAGE_SIZE") > MOST_MEMORY:
            jax.clear_caches()


@pytest.fixture
def heard_signals():
    """Of a session in the background some signals are ignored, by `nohup` for one, and so by its children: not here."""
    ignored = [each for each in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(each) == signal.SIG_IGN]
    for each in ignored:
        signal.signal(each, signal.SIG_DFL)
    yield
    for each in ignored:
        signal.signal(each, signal.SIG_IGN)
