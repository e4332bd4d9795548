"""The certify command: a ladder of bounds in the right order for models of every framework, and errors in one line."""

import contextlib
import io
import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from user_models import U, V, write_modules

from jaxact.__main__ import main
from jaxact._cli import _certify_tables, _verdict
from jaxact.lipschitz import Ladder, Rung, _ladder


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The modules of this file in the current directory, whence they are imported."""
    folder = tmp_path_factory.mktemp("models")
    write_modules(folder)
    np.save(folder / "center.npy", np.ones((1, 3)))
    np.save(folder / "inputs.npy", np.ones((2, 3)))
    np.save(folder / "wrong.npy", np.ones(4))
    np.save(folder / "nan.npy", np.full(3, np.nan))
    (folder / "text.npy").write_text("no array")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.path", [*sys.path])
        patch.setattr(_ladder, "_NUM_CROSSINGS", 0)  # which takes long to compile
        patch.setattr(_ladder, "_GROUP_SIZE", 5)
        yield folder


def call(*words):
    """Run the command in this process; gives exit status, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(["certify", *(str(word) for word in words)])
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def strict(text):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def ladder():
    status, out, err = call(
        "certify_sectors:model", "--input-shape", 2, "--steps", 30, "--lower-steps", 3, "--json"
    )
    assert (status, err) == (0, "a module may print\n")
    return strict(out)


@pytest.fixture
def without_estimate(monkeypatch):
    """CLEVER compiles a second search, which most tests do not look at."""
    not_asked = lambda fn, where, *_: Rung("CLEVER", "estimate", where, missing="not asked")  # noqa: E731
    monkeypatch.setattr(_ladder, "_estimated", not_asked)


def rungs(found, region=None):
    return {row["name"]: row for row in found["ladder"] if row["region"] == region}


def jacobian(x):
    return U.astype(np.float32).astype(float) @ np.diag(V @ x > 0) @ V.astype(np.float32)


def test_the_ladder_ascends_from_the_exact_constant_to_the_product_of_norms(ladder):
    rows = rungs(ladder)
    edges = np.sort(np.arctan2(-V[:, 0], V[:, 1])[:, None] + [0, np.pi], None)
    middles = (edges + np.roll(edges, -1)) / 2 + np.pi * (np.arange(edges.size) == edges.size - 1)
    exact = max(np.linalg.norm(jacobian([np.cos(t), np.sin(t)]), 2) for t in middles)
    product = np.linalg.norm(U, 2) * np.linalg.norm(V, 2)
    assert list(rows) == ["slope attained", "CLEVER", "ellipsoid", "closed form", "product of norms"]
    assert rows["slope attained"]["value"] == pytest.approx(exact, rel=1e-9)
    assert rows["product of norms"]["value"] == pytest.approx(product, rel=1e-6)
    values = [rows[name]["value"] for name in ("ellipsoid", "closed form", "product of norms")]
    assert exact <= values[0] < values[1] < values[2]
    for row in rows.values():
        assert row["log10"] == pytest.approx(math.log10(row["value"]), abs=1e-12)
        assert row["norm"] == 2
        assert row["assumptions"]
        assert row["seconds"] > 0
    assert [row["kind"] for row in rows.values()] == ["attained", "estimate", *["certified upper bound"] * 3]


def test_the_slope_is_that_of_the_model_where_it_is_said_to_be(ladder):
    where = rungs(ladder)["slope attained"]["where"]
    x = np.array(where["input"])
    assert np.linalg.norm(x) == pytest.approx(where["norm"])
    assert np.linalg.norm(jacobian(x), 2) == pytest.approx(ladder["lower"], rel=1e-9)


def test_the_factors_of_the_layers_multiply_to_the_bounds(ladder):
    assert [layer["sizes"] for layer in ladder["layers"]] == [[2, 5], [5, 5], [5, 2]]
    for name in ("ellipsoid", "closed form", "product of norms"):
        total = sum(layer["log10_factors"][name] for layer in ladder["layers"])
        assert total == pytest.approx(rungs(ladder)[name]["log10"], abs=1e-9)
    norms = [10 ** layer["log10_factors"]["product of norms"] for layer in ladder["layers"]]
    assert norms == pytest.approx([np.linalg.norm(V, 2), 1, np.linalg.norm(U, 2)], rel=1e-6)


def test_the_verdict_names_the_ratio_of_the_best_bounds(ladder):
    assert ladder["ratio"] == pytest.approx(ladder["upper"] / ladder["lower"])
    assert ladder["verdict"].startswith(
        f"upper / lower = {ladder['ratio']:.4g}: the Lipschitz constant over all inputs"
    )
    assert ladder["model"] == "certify_sectors:model"
    assert (ladder["input_shape"], ladder["called_on"], ladder["output_shapes"]) == ([2], [2], [[2]])


def test_the_tables_fit_a_terminal_of_80_columns(ladder, monkeypatch):
    from rich.console import Console

    out = io.StringIO()
    monkeypatch.setattr(_certify_tables, "console", lambda: Console(file=out, width=80, highlight=False))
    _certify_tables.print_ladder(ladder)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for words in (
        "slope attained",
        "ellipsoid, 30 steps",
        "certified",
        "estimate",
        "where the bound is lost",
    ):
        assert words in text
    for words in ("5 -> 2", "[1] up to rounding", "attained, at an input of norm", "upper / lower"):
        assert words in text


def test_in_a_ball_the_square_is_as_steep_as_its_edge(without_estimate):
    words = ("certify_bare:square", "--input-shape", 3, "--steps", 0, "--json")
    status, out, _ = call(*words, "--radius", 0.5, "--center", "center.npy", "--inputs", "inputs.npy")
    assert status == 0
    found = strict(out)
    ball = {"shape": "ball", "radius": 0.5, "center_norm": pytest.approx(math.sqrt(3))}
    assert found["region"] == ball
    rows = rungs(found, ball)
    exact = 2 * 1.5  # 2 |x_i| at the ball's edge
    assert rows["slope attained"]["value"] <= exact * (1 + 1e-12)
    assert rows["slope attained"]["value"] == pytest.approx(exact, rel=0.02)
    assert exact <= rows["closed form"]["value"] < exact * 1.01
    witness = np.array(rows["slope attained"]["where"]["input"])
    assert np.linalg.norm(witness - 1) <= 0.5 * (1 + 1e-12)
    assert 2 * np.abs(witness).max() >= rows["slope attained"]["value"] * (1 - 1e-9)
    (everywhere,) = rungs(found).values()
    assert everywhere["value"] is None
    assert everywhere["kind"] == "refused"
    assert _certify_tables._cells(everywhere, [])[1:4] == ["none", "", "refused"]
    assert "integer_pow" in everywhere["missing"]
    assert "the Lipschitz constant in the ball" in found["verdict"]


SHAPE = ["--input-shape", "3"]


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["certify_bear:square", *SHAPE], ["no module 'certify_bear' in", "Did you mean 'certify_bare'?"]),
        (["certify_package.iner:model", *SHAPE], ["'certify_package.iner'", "Did you mean 'inner'?"]),
        (["certify_bare:sqare", *SHAPE], ["certify_bare has no 'sqare'", "Did you mean 'square'?"]),
        (["certify_bare:xyzzy", *SHAPE], ["has no 'xyzzy'", "The names in it are calls, number"]),
        (["certify_bare", *SHAPE], ["must be MODULE:NAME", "Write certify_bare:model"]),
        (["certify_bare.py:square", *SHAPE], ["MODULE:NAME", "got 'certify_bare.py:square'"]),
        (["certify_bare:number", *SHAPE], ["must be a function of one array", "it is an int"]),
        (["certify_bare:returns_number", *SHAPE], ["it returns an int"]),
        (["certify_bare:bad_factory", *SHAPE], ["ZeroDivisionError: division by zero (certify_bare.py:"]),
        (["certify_bare:NeedsWidth", *SHAPE], ["is a class that needs arguments, NeedsWidth"]),
        (["certify_linen:module", *SHAPE], ["without its variables, Dense", "(module, variables)"]),
        (["certify_linen:triple", *SHAPE], ["got a tuple of 3", "(Linen module, variables)"]),
        (
            ["certify_fails:model", *SHAPE],
            ["importing certify_fails raised ZeroDivisionError", "fails.py:2)"],
        ),
        (["certify_typo:model", *SHAPE], ["raised SyntaxError", "(certify_typo.py:1)"]),
        (["certify_exits:model", *SHAPE], ["raised SystemExit: 1 (certify_exits.py:2)"]),
        (["certify_lacks:model", *SHAPE], ["No module named 'certify_no_such_thing' (certify_lacks.py:1)"]),
        (
            ["certify_nnx:layer", "--input-shape", "5"],
            ["must be that of one example", "got [5]", "on [1, 5]"],
        ),
        (["certify_bare:broken", *SHAPE], ["RuntimeError: not today (certify_bare.py:", "on [1, 3]"]),
        (["certify_nnx:pooled", "--input-shape", "2,3"], ["different outputs", "--batch if", "--no-batch"]),
        (["certify_bare:classes", *SHAPE], ["real floating-point arrays, got int64", "scores instead"]),
        (
            ["certify_bare:diverged", *SHAPE],
            ["certify_bare:diverged cannot be certified: ", "finite weights"],
        ),
        (["certify_bare:nothing", *SHAPE], ["must return an array, got ()"]),
        (
            ["certify_bare:square", *SHAPE],
            ["`integer_pow` at", "certify_bare.py:", "region=", "--radius R --center"],
        ),
        (
            ["certify_bare:product", "--input-shape", "4"],
            ["a product of two variables", "`mul` at", "--radius R"],
        ),
        (["certify_bare:factored", *SHAPE], ["certify_bare:factored cannot be bounded: `qr`"]),
        (
            ["certify_bare:factored", *SHAPE, "--radius", "1"],
            ["certify_bare:factored cannot be bounded: `qr`"],
        ),
        (["certify_bare:square"], ["required: --input-shape"]),
        (["certify_bare:square", "--input-shape", "3,0"], ["positive integers, 784 or 28,28,1, got '3,0'"]),
        (["certify_bare:square", *SHAPE, "--radius", "0"], ["positive, finite number, got '0'"]),
        (["certify_bare:square", *SHAPE, "--center", "center.npy"], ["needs `--radius R`"]),
        (["certify_bare:square", *SHAPE, "--box", "1", "-1"], ["must be LO < HI, got 1 -1"]),
        (["certify_bare:square", *SHAPE, "--box", "0", "1", "--radius", "1"], ["got both. Drop one."]),
        (
            ["certify_bare:square", *SHAPE, "--radius", "1", "--center", "no.npy"],
            ["FileNotFoundError", "'no.npy'"],
        ),
        (["certify_bare:square", *SHAPE, "--radius", "1", "--center", "text.npy"], ["must be a .npy file"]),
        (["certify_bare:square", *SHAPE, "--radius", "1", "--center", "nan.npy"], ["finite, real numbers"]),
        (["certify_bare:square", *SHAPE, "--inputs", "wrong.npy"], ["must be of shape [n, 3], got [4]"]),
    ],
)
def test_bad_input_exits_with_2_and_one_message(words, messages):
    status, out, err = call(*words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for message in messages:
        assert message in err


@pytest.mark.parametrize(
    ("text", "shape"),
    [("784", (784,)), ("28,28,1", (28, 28, 1)), ("28x28x1", (28, 28, 1)), ("(3,)", (3,)), ("[2, 3]", (2, 3))],
)
def test_shapes_are_read_as_they_are_written(text, shape):
    from jaxact._cli._values import shape as parsed

    assert parsed(text) == shape


def rung(log10, kind):
    return Rung(kind, kind, None, 10**log10 if log10 < 308 else math.inf, log10)


@pytest.mark.parametrize(
    ("upper", "lower", "message"),
    [
        (-math.inf, -math.inf, "is 0: the outputs do not depend on the input"),
        (1.0, -math.inf, "no place was found where the model has any slope"),
        (0.0, 0.1, "is above the certificate"),
        (
            400.0,
            1.0,
            "10^399.0: the Lipschitz constant over all inputs lies between 10, which is attained, and 10^400.0",
        ),
        (0.0001, 0.0, "known to 0.023 %"),
        (5.0, 1.0, "says little of the model"),
    ],
)
def test_the_verdict_says_what_the_ratio_means(upper, lower, message):
    rungs = (rung(lower, "attained"), rung(upper, "certified upper bound"))
    assert message in _verdict.verdict(Ladder(rungs, None, jnp.float64, 0))


def test_the_limit_of_what_is_held_jointly_is_an_option(without_estimate):
    words = ["certify_sectors:model", "--input-shape", 2, "--steps", 2, "--lower-steps", 1]
    values = {}
    for limit in (2048, 1):
        status, out, _ = call(*words, "--memory-limit", limit, "--json")
        assert status == 0
        values[limit] = rungs(strict(out))
    notes = [note for note in values[1]["closed form"]["assumptions"] if "--memory-limit" in note]
    assert notes == ["a --memory-limit above 1 holds more entries jointly, in more time and memory"]
    assert "--memory-limit" not in str(values[2048])
    assert "--memory-limit" not in str(values[1]["product of norms"])
    assert values[2048]["closed form"]["value"] < 0.99 * values[1]["closed form"]["value"]
    np.testing.assert_allclose(values[1]["closed form"]["value"], values[1]["product of norms"]["value"])
    assert "must be an integer of at least 1" in call(*words, "--memory-limit", 0)[2]
