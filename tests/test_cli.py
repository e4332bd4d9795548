"""The command line: facts as tables and JSON, rankings, figures, and errors that say what to write."""

import ast
import builtins
import contextlib
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxact
from jaxact import activations, theory
from jaxact.__main__ import main

ROOT = Path(__file__).parents[1]
SIGMA_B = (0.0, 0.05**0.5)


@pytest.fixture
def call(capsys):
    """Run one command in this process; gives exit status, stdout and stderr."""

    def call(*words):
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err

    return call


def strict(text):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_describe_prints_known_values_as_strict_json(call):
    status, out, err = call("describe", "relu", "tanh", "--json")
    assert (status, err) == (0, "")
    relu, tanh = strict(out)["activations"]
    assert relu["gain"] == pytest.approx(math.sqrt(2), abs=1e-12)
    assert relu["range"] == [0, "inf"]
    assert relu["kinks"] == [0]
    assert relu["moments"]["mean"] == pytest.approx(1 / math.sqrt(2 * math.pi), abs=1e-13)
    assert relu["moments"]["variance"] == pytest.approx(0.5 - 1 / (2 * math.pi), abs=1e-13)
    assert relu["moments"]["dead_probability"] == pytest.approx(0.5, abs=1e-13)
    infinite, finite = relu["batch_norm_gradient_growth"]
    assert infinite == {"batch_size": None, "growth": pytest.approx(math.pi / (math.pi - 1)), "missing": None}
    assert finite["batch_size"] == 256
    assert finite["growth"] > infinite["growth"]
    without, with_bias = relu["critical_points"]
    assert without["sigma_w"] == pytest.approx(math.sqrt(2))
    assert without["stability"] == relu["gain_stability"] == "neutral"
    assert with_bias["sigma_w"] is None
    assert "no critical point for relu" in with_bias["missing"]
    assert tanh["gain"] is None
    assert "stays below 1" in tanh["gain_missing"]
    assert tanh["critical_points"][0]["sigma_w"] == pytest.approx(1, abs=1e-8)
    # Schoenholz et al. 2017, figure 2: sigma_w^2 = 1.76 at sigma_b^2 = 0.05.
    assert tanh["critical_points"][1]["sigma_w"] ** 2 == pytest.approx(1.76095, abs=1e-4)
    assert tanh["critical_points"][1]["stability"] == "attracting"


def test_describe_prints_a_table_with_the_reasons_for_what_there_is_not(call):
    status, out, err = call("describe", "relu", "tanh", "--sigma-b", "0.3", "--batch-size", "8")
    assert (status, err) == (0, "")
    for words in ("max(x, 0)", "tanh(x)", "1.4142", "sigma_b = 0.3", "batch 8", "none [1]", "none [2]"):
        assert words in out
    assert "[1] `activation` must reach" in out
    assert "exact: known in closed form. computed: float64 quadrature" in out


@pytest.fixture(scope="module")
def facts():
    from jaxact._cli import _describe

    names = ("gelu", "relu_squared")
    return {name: _describe.describe(activations.parse(name)) for name in names}


def test_what_there_is_not_is_explained(facts):
    squared = facts["relu_squared"]
    assert squared["critical_points"][0]["sigma_w"] is None
    assert "has no critical point for" in squared["critical_points"][0]["missing"]
    assert squared["lipschitz"] == "inf"
    # E f^2 = 3/2, E f = 1/2, E f'^2 = 2.
    assert squared["batch_norm_gradient_growth"][0]["growth"] == pytest.approx(2 / (3 / 2 - 1 / 4))
    strict(json.dumps(facts, allow_nan=False))


def test_a_fixed_point_repels_where_signals_beside_it_leave(facts):
    gelu = facts["gelu"]
    point = gelu["critical_points"][1]
    assert point["stability"] == gelu["gain_stability"] == "repelling"
    with jax.enable_x64(True):
        q = point["q_star"] * 1.001
        after = theory.variance_map(activations.gelu, q, sigma_w=point["sigma_w"], sigma_b=point["sigma_b"])
    assert float(after) > q


def test_list_names_the_zoo(call):
    status, out, _ = call("list", "--json")
    assert status == 0
    assert strict(out) == {"names": list(activations.names())}
    status, out, _ = call("list")
    assert status == 0
    assert "quick_gelu" in out


@pytest.fixture(scope="module")
def ranking():
    zoo = [activations.parse(name) for name in ("tanh", "relu", "sigmoid")]
    return theory.compare(zoo, depth=64, sigma_b=SIGMA_B, shaping=())


@pytest.fixture(scope="module")
def in_print(ranking):
    from jaxact._cli import _compare

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        _compare._print(ranking, 64)
    return out.getvalue()


@pytest.mark.parametrize(
    "words",
    [
        "  1. tanh (critical, orthogonal): Signals shrink",
        "-  tanh, variance-preserving: `activation` must reach",
        "-  relu, critical, sigma_b = 0.22361: `sigma_b` = 0.223607 has no critical point for relu",
        "Try another --sigma-b.",
        "Gradients keep their size; inputs become indistinguishable after ",
        "polynomially",
        "50 % of them are 0",
        "squared gradients shrink by 6x a layer: 10^-49.8 over 64 layers",
        "the first of them, tanh (critical, orthogonal), in Flax NNX:",
        '    "kernel_init": initializers.critical_orthogonal(f),',
    ],
)
def test_compare_prints_a_ranking_with_sentences_and_the_code_of_the_first(in_print, words):
    assert words in in_print


def test_sentences_say_what_is_lost_altogether(ranking):
    from jaxact._cli._why import why

    row = ranking.ranking[0]
    lost = row._replace(contrast_left=math.nan, largest_over_rms=math.nan)
    overflown = lost._replace(q_end=math.inf, growth_decades=math.inf)
    assert why(overflown) == "Signals overflow; gradients overflow."
    vanished = lost._replace(q_end=0.0, growth_decades=-math.inf, gradient_decades=math.inf)
    assert why(vanished) == "Signals shrink (0x the variance); gradients vanish altogether."


def test_compare_prints_strict_json(call, ranking):
    from jaxact._cli import _compare

    status, out, err = call("compare", "tanh", "tanh", "--shaping", "none", "--json")
    assert (status, err) == (0, "")
    found = strict(out)
    assert found["depth"] == 64
    assert found["score"].startswith("decades lost over the depth")
    expected = [_compare._row(row) for row in ranking.ranking if row.activation == activations.tanh]
    assert found["ranking"] == [{"rank": rank} | row for rank, row in enumerate(expected, 1)]
    assert all(f"range({found['depth']})" in row["code"] for row in found["ranking"])


def test_compare_tries_every_way_by_default(call):
    status, out, _ = call("compare", "relu", "--weights", "orthogonal", "--depth", 32, "--json")
    assert status == 0
    code = {row["initialisation"]: row["code"] for row in strict(out)["ranking"]}
    assert set(code) == {"variance-preserving = critical", "dks", "tat"}
    for method in ("dks", "tat"):
        assert f'f = theory.shape(activations.relu, 32, method="{method}")' in code[method]


BOTH = ["gaussian", "orthogonal"]


@pytest.mark.parametrize(
    ("words", "names", "weights", "sigma_b"),
    [
        ("relu tanh", ["relu", "tanh"], BOTH, list(SIGMA_B)),
        ("relu --weights gaussian,orthogonal --sigma-b 0,0.3", ["relu"], BOTH, [0, 0.3]),
        ("--sigma-b 0,0.3 --weights gaussian,orthogonal relu", ["relu"], BOTH, [0, 0.3]),
        ("--weights orthogonal relu tanh", ["relu", "tanh"], ["orthogonal"], [0, 0.05**0.5]),
        ("--weights=orthogonal gaussian --sigma-b=0.3", ["gaussian"], ["orthogonal"], [0.3]),
    ],
)
def test_lists_of_compare_leave_the_names_alone(monkeypatch, words, names, weights, sigma_b):
    from jaxact._cli import _compare

    seen = []
    monkeypatch.setattr(_compare, "run", lambda options: seen.append(options) or 0)
    assert main(["compare", *words.split()]) == 0
    (options,) = seen
    assert (options.names, options.weights, options.sigma_b) == (names, weights, sigma_b)


@pytest.mark.parametrize("name", ["describe", "compare", "certify", "list"])
def test_help_of_a_command_is_its_own(call, name):
    status, out, err = call("help", name)
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: python -m jaxact {name} ")
    assert out == call(name, "--help")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["describe", "gellu"], "did you mean gelu"),
        (["compare", "relu", "tahn"], "did you mean tanh"),
        (["describe", "xyzzy"], "`python -m jaxact list` shows all"),
        (["describe", "leaky_relu(inf)"], "`a` of leaky_relu must be a number in"),
        (["describe", "relu(2)"], "relu takes no parameters"),
        (["describe"], "required: NAME"),
        (["describe", "relu", "--sigma-b", "-1"], "finite, nonnegative number, got '-1'"),
        (["describe", "relu", "--batch-size", "3"], "integer of at least 4, got '3'"),
        (["compare", "relu", "--depth", "1"], "integer of at least 2, got '1'"),
        (["compare", "relu", "--weights", "uniform"], "choose from"),
        (["compare", "relu", "--weights", "gaussian,uniform"], "got 'uniform'"),
        (["compare", "relu", "--shaping", "dks,dsk"], "choose from dks, tat, got 'dsk'"),
        (["compare", "relu", "--sigma-b", "0,-1"], "finite, nonnegative number, got '-1'"),
        (["help", "comprae"], "Did you mean `compare`?"),
        (["descrbe", "relu"], "Did you mean `describe`?"),
        (["frobnicate"], "The commands are describe, compare"),
        (["describe", "relu", "--plot", "relu.gif"], "writes .png, .svg, .html files, got 'relu.gif'"),
        (["describe", "relu", "--plot", "nowhere/relu.svg"], "needs an existing folder"),
        (["describe", "relu", "--depth", "3"], "unrecognized arguments"),
    ],
)
def test_bad_input_exits_with_2_and_one_message(call, words, message):
    status, out, err = call(*words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_figure_without_altair_says_what_to_install(call, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name == "altair":
            raise ModuleNotFoundError("No module named 'altair'", name="altair")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    status, _, err = call("describe", "relu", "--plot", "relu.svg")
    assert status == 2
    assert 'altair is missing: pip install "jaxact[study]"' in err


def test_a_figure_shows_curves_correlations_and_phases(tmp_path, monkeypatch):
    from jaxact._cli import _plot

    monkeypatch.setattr(_plot, "_GRID", (4, 3))
    file = tmp_path / "tanh.svg"
    _plot.draw(file, [activations.tanh], sigma_b=0.05**0.5)
    text = file.read_text()
    for words in (
        "f(x)",
        "C(c), the same in the next layer",
        "critical, \N{GREEK SMALL LETTER SIGMA}w = 1.33",
        "edge of chaos",
        "layers over which",
    ):
        assert words in text


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"jaxact {jaxact.__version__}\n"


def test_help_is_printed_without_importing_jax():
    script = (
        "import sys; from jaxact.__main__ import main\n"
        "assert main([]) == 2\n"
        "for words in (['--help'], ['describe', '--help'], ['compare', '--help'], ['help'], ['help', 'certify']):\n"
        "    try: main(words)\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'jax', 'flax', 'numpy', 'rich'} & set(sys.modules), 'slow help'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("python -m jaxact describe gelu") == 3
    assert "score, in decades, lower is better" in done.stdout
    assert "the ladder, all in the Euclidean norm" in done.stdout


@pytest.mark.parametrize("depth", ["10001", "9" * 23, "9" * 5000])
def test_depths_that_no_memory_holds_are_refused(call, depth):
    status, out, err = call("compare", "relu", "--depth", depth)
    assert (status, out) == (2, "")
    assert "a depth must be" in err
    assert len(err) < 300


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_reported_in_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "jaxact", "list", "--json"],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: nothing can be written: No space left on device\n"


def test_the_edge_is_found_from_side_to_side_however_steep():
    from jaxact._cli import _plot

    high = 0.3
    weight, bias = _plot._edge(activations.cos, high)
    inside = (bias >= 0) & (bias <= high)
    assert inside.sum() > 20
    assert bias[inside].min() < 0.1 * high
    assert bias[inside].max() > 0.9 * high
    # E sin(sqrt(q) z)^2 = (1 - exp(-2 q)) / 2, which 1 / weight is.
    q = -np.log(1 - 2 / weight[inside]) / 2
    np.testing.assert_allclose(bias[inside], q - weight[inside] * (1 + np.exp(-2 * q)) / 2, atol=1e-9)


def test_remedies_are_those_of_the_command_line(call):
    _, out, _ = call("describe", "relu")
    assert "Try another --sigma-b." in out
    assert "q_star instead" not in out
    assert "0, on an interval" in out


@pytest.mark.parametrize(("word", "shaping"), [("none", []), ("tat", ["tat"]), ("dks,tat", ["dks", "tat"])])
def test_shaping_narrows_what_is_tried(monkeypatch, word, shaping):
    from jaxact._cli import _compare

    seen = []
    monkeypatch.setattr(_compare, "run", lambda options: seen.append(options.shaping) or 0)
    assert main(["compare", "relu", "--shaping", word]) == 0
    assert main(["compare", "relu"]) == 0
    assert seen == [shaping, ["dks", "tat"]]


def test_commands_import_no_private_module_of_another_package():
    package = ROOT / "jaxact"
    for file in (*(package / "_cli").glob("*.py"), package / "__main__.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.module.split(".")[1:] if isinstance(node, ast.ImportFrom) and node.module else []
            is_private = any(part.startswith("_") for part in parts)
            assert not is_private or parts[0] in ("_cli", "_version"), f"{file.name}: {node.module}"
