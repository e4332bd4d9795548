"""The diagnose command: numbers as NumPy has them, a table that fits, a page that draws, and errors in one line."""

import contextlib
import dataclasses
import io
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import vl_convert
from event_files import events
from user_models import write_modules

from jaxact.__main__ import main
from jaxact._cli import _diagnose
from jaxact.diagnosis import Finding, diagnose

MODELS = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx

print("a module may print")
rng = np.random.default_rng(7)
params = {"first": rng.standard_normal((6, 8)).astype(np.float32) / 6 ** 0.5,
          "second": rng.standard_normal((8, 3)).astype(np.float32) / 8 ** 0.5}

def fn(params, x):
    return jax.nn.relu(x @ params["first"]) @ params["second"]

def make():
    return params

def pair():
    return fn, params

broken = {"first": np.full((6, 8), np.nan, np.float32), "second": params["second"]}
words = {"first": "no", "second": "array"}

class Words(nnx.Module):
    def __init__(self):
        self.embed, self.head = nnx.Embed(9, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 9, rngs=nnx.Rngs(1))
    def __call__(self, tokens):
        return self.head(jnp.tanh(self.embed(tokens)))

class Trained(nnx.Module):
    def __init__(self, width):
        self.linear, self.drop = nnx.Linear(width, 2, rngs=nnx.Rngs(0)), nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    def __call__(self, x):
        return self.drop(self.linear(x))

def words_model():
    return Words()

def trained():
    return Trained(3)

def deep():
    return lambda w, x: jax.lax.scan(lambda h, _: (h @ w, None), x, None, length=70)[0], np.eye(6, dtype=np.float32)

def squares(outputs, labels):
    return jnp.mean((outputs - labels[:, None]) ** 2)

def not_scalar(outputs):
    return outputs
"""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The modules and files of this file in the current directory."""
    folder = tmp_path_factory.mktemp("models")
    write_modules(folder)
    (folder / "diagnose_models.py").write_text(MODELS)
    x = np.random.default_rng(1).standard_normal((5, 6))
    np.savez(folder / "batch.npz", inputs=x, labels=np.array([0, 1, 2, 1, 0]))
    np.savez(folder / "far.npz", inputs=x, y=np.array([0, 1, 9, 1, 0]))
    np.savez(folder / "two.npz", a=x, b=x[:, :3])
    np.savez(folder / "short.npz", x=x, labels=np.array([0, 1]))
    np.savez(folder / "text.npz", x=np.array(["a", "b"]))
    np.savez(folder / "objects.npz", x=np.array([{}, {}], object))
    np.save(folder / "nan.npy", np.full((5, 6), np.nan))
    whole = (folder / "batch.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "damaged.npz").write_bytes(whole[:150] + bytes(40) + whole[190:])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.path", [*sys.path])
        yield folder


def call(*words):
    """Run the command in this process; gives exit status, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(["diagnose", *map(str, words)])
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def found(*words):
    """What --json prints, strictly."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    status, out, _ = call(*words, "--json")
    assert status == 0
    return json.loads(out, parse_constant=refuse)


def network(x):
    """The two products of the user's function, by NumPy."""
    rng = np.random.default_rng(7)
    first, second = rng.standard_normal((6, 8)) / 6**0.5, rng.standard_normal((8, 3)) / 8**0.5
    return x @ first, np.maximum(x @ first, 0) @ second, second


def test_rows_are_those_of_numpy_with_labels_and_without():
    x = np.random.default_rng(1).standard_normal((5, 6))
    z, y, second = network(x)
    facts = found("diagnose_models:pair", "--batch", "batch.npz", "--no-jacobian")
    assert facts["kind"] == "function of (params, inputs)"
    assert facts["inputs"] == {
        "shape": [5, 6],
        "dtype": "float32",
        "from": "'inputs' of batch.npz, labels 'labels'",
    }
    rows = facts["rows"]
    assert [row["name"] for row in rows] == ["['first']", "['second']"]
    np.testing.assert_allclose([r["second_moment"] for r in rows], [np.mean(z**2), np.mean(y**2)], rtol=1e-5)
    assert rows[0]["zero"] == pytest.approx(np.mean(z <= 0))
    assert rows[0]["dead"] == pytest.approx(np.mean(np.all(z <= 0, 0)))
    assert rows[1]["zero"] is None
    share = np.exp(y) / np.exp(y).sum(1, keepdims=True)
    gradient = (share - np.eye(3)[[0, 1, 2, 1, 0]]) / 5
    before = (gradient @ second.T) * (z > 0)
    expected = [np.sqrt(np.mean(before**2)), np.sqrt(np.mean(gradient**2))]
    np.testing.assert_allclose([row["gradient"] for row in rows], expected, rtol=1e-4)
    mine = found("diagnose_models:pair", "--batch", "batch.npz", "--loss", "diagnose_models:squares")
    gradient = 2 * (y - np.array([0, 1, 2, 1, 0])[:, None]) / y.size
    assert mine["rows"][1]["gradient"] == pytest.approx(np.sqrt(np.mean(gradient**2)), rel=1e-4)
    assert mine["loss"] == "`squares`"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["diagnose_models:fn", "--params", "params"], ["['first']", "['second']"]),
        (["diagnose_models:fn", "--params", "diagnose_models:make"], ["['first']", "['second']"]),
        (["certify_nnx:layer"], ["kernel"]),
        (["certify_linen:pair"], ["['kernel']"]),
    ],
)
def test_models_of_every_kind_are_measured_on_drawn_inputs(words, names):
    size = 3 if words[0].startswith("certify") else 6
    facts = found(*words, "--input-shape", f"4,{size}", "--seed", 3)
    assert [row["name"] for row in facts["rows"]] == names
    assert facts["inputs"]["from"] == "standard normal, seed 3"
    if size == 6:
        z, _, _ = network(np.random.default_rng(3).standard_normal((4, 6)))
        assert facts["rows"][0]["second_moment"] == pytest.approx(np.mean(z**2), rel=1e-5)


def test_integers_are_drawn_for_embeddings():
    words = [
        "diagnose_models:words_model",
        "--input-shape",
        "4,5",
        "--input-dtype",
        "int32",
        "--input-max",
        9,
    ]
    facts = found(*words)
    assert facts["inputs"] == {"shape": [4, 5], "dtype": "int32", "from": "uniform on 0 to 8, seed 0"}
    assert facts["rows"][-1]["name"] == "head.kernel"


def test_the_table_keeps_the_most_telling_columns():
    rng = np.random.default_rng(0)
    params = {"a" * 40: rng.standard_normal((6, 6)), "b": rng.standard_normal((6, 6))}
    one = diagnose(
        lambda p, x: np.tanh(1) * x @ p["a" * 40] @ p["b"],
        params,
        rng.standard_normal((4, 6)),
        jacobian=False,
    )
    widths = [40, 60, 80, 120, 400]
    tables = [one.table(width) for width in widths]
    for width, text in zip(widths[1:], tables[1:], strict=True):
        assert max(map(len, text.splitlines())) <= width
    assert tables[0].splitlines()[0].split() == ["product", "E", "z^2", "theory"]
    assert "gradient  theory" in tables[2]
    assert tables[-1] == one.table()
    assert "no room for: line, kind, fan-in, cosine, cosine by theory, rank." in one.text(80)
    assert "no room for" not in one.text(400)


def test_a_long_table_shows_its_ends():
    status, out, _ = call("diagnose_models:deep", "--input-shape", "2,6", "--no-jacobian")
    assert status == 0
    assert "\n... 10 more\n" in out
    assert len(re.findall("^params ", out, re.MULTILINE)) == 60


FOUND = (
    Finding(
        *("vanishing gradient", 3.0, "['first']", "a.py:1", "the gradient <vanishes>."),
        *("A cause.", "A remedy.", "x = 1\nif x < 2: y"),
    ),
    Finding("dead units", 0.5, "['second']", "a.py:2", "half are dead.", "", "", ""),
)


@pytest.fixture
def with_findings(monkeypatch):
    def measured(*args, **options):
        found = diagnose(*args, **options)
        object.__setattr__(found, "findings", FOUND)  # planted, whatever is found of this model
        return found

    monkeypatch.setattr(_diagnose, "diagnose", measured)


def test_findings_are_told_the_first_first(with_findings, folder):
    words = ["diagnose_models:pair", "--input-shape", "4,6", "--no-jacobian", "--html", "told.html"]
    status, out, _ = call(*words)
    assert status == 0
    first, second = (out.index(str(each)) for each in FOUND)
    assert first < second
    assert found(*words[:4])["findings"] == [dataclasses.asdict(each) | {"layers": []} for each in FOUND]
    page = (folder / "told.html").read_text()
    told = "[3.0] Vanishing gradient at [&#39;first&#39;] (a.py:1): the gradient &lt;vanishes&gt;.</p>"
    assert f'<p class="verdict">{told}' in page
    assert "[0.5] Dead units at" in page
    assert '<h2 id="findings">Other findings and notes</h2>' in page
    assert "<pre><code>x = 1\nif x &lt; 2: y</code></pre>" in page
    assert page.index("A remedy.") < page.index("half are dead.") < page.index("Every product")


def test_the_page_draws_without_a_network_and_says_how_it_was_made(folder):
    (folder / "page.html").write_text("the last one")
    words = ["diagnose_models:pair", "--batch", "batch.npz", "--html", "page.html"]
    status, out, _ = call(*words)
    assert status == 0
    assert out.splitlines()[-1] == "page  page.html, in place of what was there"
    assert [path.name for path in folder.glob("*page.html*")] == ["page.html"]
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert '<h2 id="findings">Notes</h2>' in page  # of the one finding, or none, nothing is left for below
    assert '<a href="#findings">Notes</a>' in page
    markup = re.sub(r"(?s)(<script[^>]*>).*?</script>", r"\1", page)
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", markup)
    for text in (
        "python -m jaxact diagnose diagnose_models:pair --batch batch.npz",
        "[&#39;second&#39;]",
        "jaxact",
    ):
        assert text in page
    blocks = dict(re.findall(r'<script type="application/json" id="(\w+)">(.*?)</script>', page, re.DOTALL))
    specs = json.loads(blocks["specs"])
    assert list(specs) == ["by-depth", "cosine", "shares", "rank", "singular-values"]
    for spec in specs.values():
        drawn = vl_convert.vegalite_to_svg(spec)
        assert "product, in order of execution" in drawn
        assert "<path" in drawn


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ([], ["either drawn, `--input-shape 32,784`, or read", "got neither"]),
        (["--input-shape", "4,6", "--batch", "batch.npz"], ["got both"]),
        (["--input-shape", "4,7"], ["float32[4, 7]", "diagnose_models.py:11", "--input-shape, inputs first"]),
        (["--input-shape", "4,6", "--input-max", "3"], ["`--input-max` is for integers", "--input-dtype int32"]),
        (["--input-shape", "4,6", "--input-dtype", "int32"], ["needs `--input-max N`, got none"]),
        (["--batch", "no.npz"], ["must be a .npz file", "'no.npz'", "FileNotFoundError", "numpy.savez"]),
        (["--batch", "cut.npz"], ["must be a .npz file", "'cut.npz'"]),
        (["--batch", "damaged.npz"], ["must be a .npz file", "'damaged.npz'"]),
        (["--batch", "objects.npz"], ["must be a .npz file", "Object arrays cannot be loaded"]),
        (["--batch", "text.npz"], ["an array of real numbers", "got <U1[2] in text.npz:x"]),
        (["--batch", "two.npz"], ["must say which array holds the inputs, two.npz has a, b", "two.npz:NAME"]),
        (["--batch", "two.npz:c"], ["two.npz has no array 'c'. It has a, b."]),
        (["--batch", "two.npz:b"], ["float32[5, 3]"]),
        (["--batch", "short.npz"], ["one for each of 5 inputs, got int64[2] in short.npz:labels"]),
        (["--batch", "far.npz"], ["scores [5, classes] of more than 9 classes, the model returns [5, 3]"]),
        (["--batch", "nan.npy"], ["`--batch` must be finite, got 30 NaN or inf of 30", "Clean the data"]),
        (["--batch", "batch.npz", "--loss", "diagnose_models:no"], ["diagnose_models has no 'no'"]),
        (["--input-shape", "4,6", "--loss", "diagnose_models:not_scalar"], ["must return a real scalar"]),
        (["--input-shape", "4,6", "--html", "no/page.html"], ["needs an existing folder", "Make no first"]),
        (["--input-shape", "4,6", "--html", "page.txt"], ["must be a .html file, got 'page.txt'"]),
        (["--input-shape", "4,0"], ["positive integers"]),
    ],
)  # fmt: skip
def test_bad_options_exit_with_2_and_one_message(words, messages):
    check_refusal(["diagnose_models:pair", *words], messages)


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["diagnose_model:pair"], ["no module 'diagnose_model' in", "Did you mean 'diagnose_models'?"]),
        (["diagnose_models:par"], ["diagnose_models has no 'par'", "Did you mean 'pair'?"]),
        (["diagnose_models:fn"], ["got a function", "--params NAME, or name a pair"]),
        (["diagnose_models:fn", "--params", "prams"], ["has no 'prams'", "Did you mean 'params'?"]),
        (["diagnose_models:fn", "--params", "broken"], ["`--params broken` ['first'] must be finite, got 48 NaN"]),
        (["diagnose_models:fn", "--params", "words"], ["`--params words` must be", "got str at ['first']"]),
        (["certify_bare:bad_factory"], ["ZeroDivisionError: division by zero (certify_bare.py:"]),
        (["diagnose_models:Trained"], ["is a class that needs arguments, Trained", "Write a function"]),
        (["certify_bare:number"], ["must be an NNX or Equinox module", "got an int"]),
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused_in_one_message(words, messages):
    check_refusal([*words, "--input-shape", "4,6"], messages)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("certify_equinox:model", "eqx.nn.inference_mode(model)"), ("diagnose_models:trained", "module.eval()")],
)
def test_training_mode_is_refused(name, remedy):
    check_refusal([name, "--input-shape", "4,3"], ["must not be in training mode", remedy])


def check_refusal(words, messages):
    status, out, err = call(*words)
    assert (status, out) == (2, "")
    told = err.removeprefix("a module may print\n")
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    for message in messages:
        assert message in told


# --- Watching while training ----------------------------------------------------------------------------------


def test_a_watched_training_is_in_the_event_files(tmp_path):
    import watch_tensorboard

    watch_tensorboard.main(str(tmp_path), depth=3, num_steps=2, every=2)
    numbers = events(tmp_path)
    assert {step for tag, step in numbers if tag == "loss"} == {0, 1, 2}
    assert {step for tag, step in numbers if tag != "loss"} == {0, 2}
    tags = {tag for tag, _ in numbers if tag.startswith("gradient_second_moment/")}
    assert tags == {f"gradient_second_moment/layers.{k}.kernel" for k in (0, 2, 4)}
    assert numbers["loss", 2] < numbers["loss", 0]
    for tag in tags:
        assert numbers[tag, 0] != numbers[tag, 2]


def test_a_watched_training_logs_rows_to_wandb(monkeypatch):
    import watch_wandb

    rows = {}
    run = SimpleNamespace(log=lambda numbers, step: rows.update({step: numbers}))
    module = SimpleNamespace(init=lambda project: contextlib.nullcontext(run))
    monkeypatch.setitem(sys.modules, "wandb", module)
    watch_wandb.main(depth=3, num_steps=1, every=2)
    assert list(rows) == [0, 1]
    assert list(rows[1]) == ["loss"]
    assert rows[0]["saturated/layers.0.kernel"] + rows[0]["second_moment/layers.4.kernel"] > 0


def test_a_rate_is_held_against_the_sharpness_of_the_loss():
    words = ["diagnose_models:pair", "--batch", "batch.npz", "--no-jacobian", "--learning-rate"]
    kinds = {rate: [each["kind"] for each in found(*words, rate)["findings"]] for rate in ("1e-3", "1e4")}
    assert kinds["1e4"][0] == "learning rate"
    assert "learning rate" not in kinds["1e-3"]
    for given, said in (
        (["diagnose_models:pair", "--input-shape", "4,6", "--learning-rate", 0.1], "come with a loss"),
        ([*words, -1], "must be positive"),
    ):
        status, out, err = call(*given)
        assert (status, out) == (2, "")
        assert "--learning-rate" in err
        assert said in err
