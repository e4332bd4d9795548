"""The command line: facts as tables and JSON, rankings, figures, and errors that say what to write."""

import builtins
import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

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
    from jaxact._cli import _compare

    rows, missing = [], []
    for name in ("tanh", "relu", "sigmoid"):
        found = _compare.predict(activations.parse(name), depth=64, sigma_b=SIGMA_B)
        rows += found[0]
        missing += found[1]
    return _compare.rank(rows), missing


def the(rows, activation, initialisation, weights, sigma_b=0.0):
    (row,) = (
        row
        for row in rows
        if row["activation"] == activation
        and initialisation in row["initialisation"].split(" = ")
        and row["weights"] == weights
        and row["sigma_b"] == pytest.approx(sigma_b)
    )
    return row


def test_dynamical_isometry_leads_and_flat_sigmoids_trail(ranking):
    rows, _ = ranking
    first = the(rows, "tanh", "critical", "orthogonal")
    assert first["rank"] == 1
    assert {row["activation"] for row in rows if row["rank"] > len(rows) - 2} == {"sigmoid"}
    assert [row["score"] for row in rows] == sorted(row["score"] for row in rows)
    for row in rows:
        parts = [row[f"{part}_decades"] for part in ("gradient", "input", "conditioning")]
        assert row["score"] == pytest.approx(sum(parts))


def test_he_initialisation_is_critical_and_its_correlations_creep_to_one(ranking):
    rows, missing = ranking
    row = the(rows, "relu", "variance-preserving", "gaussian")
    assert row is the(rows, "relu", "critical", "gaussian")
    assert (row["phase"], row["xi_c"], row["xi_gradient"]) == ("critical", "inf", "inf")
    assert row["growth_decades"] == pytest.approx(0, abs=1e-10)
    # Cho & Saul 2009: the correlation map of relu in closed form, 64 times.
    c = np.array([0.0, 0.9])
    for _ in range(64):
        c = (np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))) / np.pi
    assert 1 - row["correlation_end"] == pytest.approx(1 - c[0], rel=5e-3)
    assert row["contrast_left"] == pytest.approx((c[1] - c[0]) / 0.9, rel=5e-3)
    assert row["why"].startswith("Gradients keep their size; inputs become indistinguishable after ")
    assert "polynomially" in row["why"]
    assert "50 % of them are 0" in row["why"]
    assert row["zero_probability"] == pytest.approx(0.5, abs=1e-12)
    assert any(
        each["activation"] == "relu" and each["initialisation"] == "critical, sigma_b = 0.22361"
        for each in missing
    )


def test_gradients_of_small_weights_vanish_at_the_rate_of_their_scale(ranking):
    rows, _ = ranking
    row = the(rows, "relu", "pytorch", "gaussian")
    assert row["chi"] == pytest.approx(1 / 6)
    assert row["growth_decades"] == pytest.approx(-64 * math.log10(6))
    assert row["xi_c"] is None  # nothing of finite length is left to correlate
    assert "squared gradients shrink by 6x a layer: 10^-49.8 over 64 layers" in row["why"]
    assert "Signals shrink" in row["why"]


def test_gaussian_weights_of_a_linear_network_cost_what_fuss_and_catalan_say(ranking):
    rows, _ = ranking
    # Of 64 Gaussian matrices, lambda_max = 65^65 / 64^64; tanh of vanishing signals is all but linear.
    row = the(rows, "tanh", "pytorch", "gaussian")
    assert row["largest_over_rms"] == pytest.approx(
        math.exp((65 * math.log(65) - 64 * math.log(64)) / 2), rel=1e-6
    )


def test_the_way_is_that_of_quadrature_in_the_plane():
    from jaxact._cli import _compare

    starts, _ = _compare._starts(activations.tanh, SIGMA_B)
    sigma_w, sigma_b = np.array([[start.sigma_w, start.sigma_b] for start in (*starts, *starts)][:5]).T
    _, path = _compare.follow(activations.tanh, 64, sigma_w, sigma_b)
    with jax.enable_x64(True):
        found = jax.jit(
            lambda: theory.correlation_map(
                activations.tanh, path.c[5].T, q=path.q[5], sigma_w=sigma_w, sigma_b=sigma_b
            )
        )()
    np.testing.assert_allclose(1 - path.c[6].T, 1 - np.asarray(found), rtol=1e-10)


def test_compare_prints_a_ranking_with_sentences(ranking, capsys):
    from jaxact._cli import _compare

    _compare._print(*ranking, 64)
    out = capsys.readouterr().out
    assert "  1. tanh (critical = lecun, orthogonal): Signals shrink" in out
    assert "-  tanh, variance-preserving: `activation` must reach" in out


def test_compare_prints_strict_json(call, ranking):
    status, out, err = call("compare", "tanh", "tanh", "--json")
    assert (status, err) == (0, "")
    found = strict(out)
    assert found["depth"] == 64
    assert found["score"].startswith("decades lost over the depth")
    expected = [{**row, "rank": None} for row in ranking[0] if row["activation"] == "tanh"]
    assert [{**row, "rank": None} for row in found["ranking"]] == expected
    assert [row["rank"] for row in found["ranking"]] == list(range(1, len(expected) + 1))


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


def test_shaped_activations_are_compared_as_what_the_shaping_makes_of_them(monkeypatch):
    from jaxact._cli import _compare

    monkeypatch.setattr(
        _compare, "_starts", lambda *_: ([], [])
    )  # the other initialisations have their own test
    shaped = partial(_compare.predict, depth=32, weights=("gaussian",))
    rows, missing = shaped(activations.relu, shaping=("dks", "tat"))
    dks, tat = rows
    assert [(row["activation"], row["sigma_w"]) for row in rows] == [("relu", 1.0)] * 2
    assert (dks["initialisation"], tat["initialisation"], missing) == ("dks", "tat", [])
    # Martens et al. 2021: C'(1)^depth = zeta; Zhang et al. 2022: C'(1) = 1, and C composed takes 0 to eta.
    assert dks["growth_decades"] == pytest.approx(np.log10(1.5), abs=1e-9)
    assert tat["growth_decades"] == pytest.approx(0, abs=1e-9)
    assert tat["correlation_end"] == pytest.approx(0.9, abs=1e-3)
    rows, (missing,) = shaped(activations.hard_tanh, shaping=("tat",))
    assert (rows, missing["initialisation"]) == ([], "tat")
    assert "finite C''(1)" in missing["reason"]


@pytest.mark.parametrize("name", ["describe", "compare", "certify", "list"])
def test_help_of_a_command_is_its_own(call, name):
    status, out, err = call("help", name)
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: python -m jaxact {name} ")
    assert out == call(name, "--help")[1]


def test_signals_that_overflow_lose_everything():
    from jaxact._cli import _compare

    q, growing = np.array([1.0, np.inf, np.inf]), dict.fromkeys(theory.MeanField._fields, math.nan)
    c, chi = np.array([[0.0, 0.9], [0.5, 0.9], [np.nan, np.nan]]), np.array([2.0, np.inf])
    start = _compare.Start(("lecun",), 2.0, 0.0, True)
    row = _compare._row(
        activations.relu_squared, start, "gaussian", growing | {"q_star": math.inf}, q, c, chi
    )
    assert row["score"] == math.inf
    assert row["why"] == "Signals overflow; gradients overflow."


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


def test_signals_that_vanish_in_floating_point_have_no_singular_values():
    from jaxact._cli import _compare

    q, gone = np.array([1.0, 0.0, 0.0]), dict.fromkeys(theory.MeanField._fields, 0.0)
    c, chi = np.array([[0.0, 0.9], [np.nan, np.nan], [np.nan, np.nan]]), np.array([0.5, 0.0])
    start = _compare.Start(("pytorch",), 3**-0.5, 0.0, True)
    row = _compare._row(activations.relu_squared, start, "gaussian", gone, q, c, chi)
    assert (row["q_end"], row["largest_over_rms"], row["score"]) == (0, None, math.inf)
    assert row["why"] == "Signals shrink (0x the variance); gradients vanish altogether."


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
