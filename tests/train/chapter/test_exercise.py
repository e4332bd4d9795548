"""An answer is run; what is wrong with it is said in words that help."""

import math

import pytest

from train.experiments.chapter.exercise import Exercise, check

HALF = Exercise(
    task="Write `half(x)`.",
    function="half",
    answer=lambda x: x / 2,
    inputs=((1.0,), (3.0,)),
    solution="def half(x):\n    return x / 2\n",
    mistakes={"That is the double.": lambda x: 2 * x},
)
NEAR = "an answer must be within 1e-06 of the right number, relative to the largest of a list."


def checked(tmp_path, text):
    path = tmp_path / "answer.py"
    path.write_text(text)
    return check(HALF, path)


@pytest.mark.parametrize(
    "text", ["np.array([x / 2])", "np.float32(x / 2)", "Fraction(x) / 2", "jnp.asarray(x / 2)", "[[x / 2]]"]
)
def test_numbers_may_come_in_any_container(text, tmp_path):
    imports = "import numpy as np\nimport jax.numpy as jnp\nfrom fractions import Fraction\n"
    assert checked(tmp_path, f"{imports}def half(x):\n    return {text}").is_right


def test_arguments_that_an_answer_changes_are_whole_for_the_next(tmp_path):
    taking = Exercise(
        task="", function="top", answer=lambda y: max(y), inputs=(([3.0, 1.0],),) * 2, solution=""
    )
    path = tmp_path / "answer.py"
    path.write_text("def top(y):\n    y.sort()\n    return y.pop()")
    assert check(taking, path).is_right
    assert taking.inputs[0] == ([3.0, 1.0],)


def test_a_right_answer_is_right(tmp_path, capsys):
    found = checked(tmp_path, "print('noise')\n" + HALF.solution)
    assert found.is_right
    assert "agrees for all 2 inputs" in found.word
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (
            "def half(x):\n    return 2 * x",
            f"half(1) gives 2, and that is not it: {NEAR} That is the double.",
        ),
        (
            "def half(x):\n    return x / 2 if x < 2 else 7",
            f"half(3) gives 7, and that is not it: {NEAR} Work out",
        ),
        (
            "def half(x):\n    return [x / 2, x]",
            "gives numbers of shape (2,), and the shape () is asked for.",
        ),
        ("def half(x):\n    return None", "half(1) gives None, and real numbers are asked for."),
        ("def half(x):\n    return 'a'", "gives 'a', and real numbers are asked for."),
        ("def half(x):\n    return str(x / 2)", "gives '0.5', and real numbers are asked for."),
        ("def half(x):\n    return complex(x / 2)", "gives (0.5+0j), and real numbers are asked for."),
        ("def half(x):\n    return 2 * x / (x - 3)", f"half(1) gives -1, and that is not it: {NEAR}"),
        ("def half(x):\n    raise SystemExit(3)", "half(1) raises SystemExit: 3. That is line 2"),
        ("def half(x):\n    return [[x / 2], [x, x]]", "and real numbers are asked for."),
        ("def half():\n    return 1", "half(1) raises TypeError"),
        ("def half(x):\n    return x / 0", "ZeroDivisionError: float division by zero. That is line 2"),
        ("def hafl(x):\n    return x / 2", "must define the function `half`; it defines hafl."),
        ("half = 3", "it defines none"),
        ("1 / 0", "does not run: ZeroDivisionError"),
        ("def half(x)", "does not run: SyntaxError"),
        ("import sys; sys.exit(0)", "does not run: SystemExit"),
        (f"def half(x):\n    return {math.nan!r}", "NameError"),
    ],
)
def test_a_wrong_answer_gets_a_word(text, word, tmp_path):
    found = checked(tmp_path, text)
    assert not found.is_right
    assert word in found.word


def test_an_answer_may_import_what_lies_beside_it(tmp_path):
    (tmp_path / "beside_it.py").write_text("TWO = 2")
    assert checked(tmp_path, "from beside_it import TWO\ndef half(x):\n    return x / TWO").is_right
