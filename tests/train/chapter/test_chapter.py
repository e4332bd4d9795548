"""Every claim of the chapter: its smoke test, that its verdict can come out the other way, and its exercise."""

import functools
import math
import re
from pathlib import Path

import numpy as np
import pytest

from train import results
from train.__main__ import main
from train.config import ConfigError
from train.experiments.chapter import Chapter, claims, part
from train.experiments.chapter import claim as base
from train.experiments.chapter.exercise import check
from train.experiments.chapter.verdict import CORRECTED, FAILS, HOLDS, UNDECIDED, Number, judge, overall
from train.report import write_report

ROOT = Path(__file__).parents[3]
NAMES = list(claims())
STEP = 1e3  # of a wrong prediction, in intervals and tolerances


@functools.cache
def smoke(name):
    chapter = Chapter(claims=(name,)).smoke()
    (cell,) = chapter.cells()
    return chapter.run(cell, progress=lambda fraction, note="": None)


def rows(result):
    """The numbers of a claim as declared, what was measured, and the stored verdicts."""
    for place in range(result.sizes["number"]):
        one = result.isel(number=place)
        fields = {name: one[name].item() for name in ("says", "relation", "tolerance", "core")}
        count = one["num_draws"].item()
        draws = one["draws"].to_numpy()[:count] if count else one["draws"].to_numpy()[0]
        yield Number(chapter=one["predicted"].item(), **fields), draws, one["verdict"].item()


def refuting(number, draws):
    """A prediction that the measurement refutes."""
    found = judge(number, draws)
    off = STEP * (abs(found.measured) + found.high - found.low + number.tolerance + 1)
    return number._replace(chapter=found.low - off if number.relation == "at_most" else found.high + off)


def confirming(number, draws):
    """The prediction that the measurement confirms."""
    found = judge(number, draws)
    return number._replace(chapter=found.measured, tolerance=number.tolerance + found.high - found.low)


@pytest.mark.parametrize("name", NAMES)
def test_a_claim_runs_by_its_smoke_and_is_described(name):
    result = smoke(name)
    results.check_structure(result)
    for variable, values in result.variables.items():
        assert values.attrs.get("units"), variable
        assert values.attrs.get("long_name"), variable
    kind = claims()[name]
    for text in (kind.title, kind.says, kind.formula, kind.practice, kind.source, kind.exercise.task):
        assert text.strip() == text != ""
    assert sum(core for core in result["core"].to_numpy()) >= 1
    assert result["exact"].notnull().any(), "exact theory has a word on every claim"
    assert Chapter.figures(result)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_flips_its_claim_when_its_prediction_is_wrong(name):
    stored = list(rows(part(smoke(name), name)))
    verdicts = [judge(number, draws).verdict for number, draws, _ in stored]
    assert verdicts == [verdict for _, _, verdict in stored]
    decided = [place for place, verdict in enumerate(verdicts) if verdict != UNDECIDED]
    assert any(stored[place][0].core for place in decided)
    for place in decided:
        number, draws, verdict = stored[place]
        other = (refuting if verdict == HOLDS else confirming)(number, draws)
        flipped = judge(other, draws).verdict
        assert flipped == (FAILS if verdict == HOLDS else HOLDS), number.says
        rest = [(True, HOLDS), (number.core, flipped)]
        assert overall(rest) == (HOLDS if flipped == HOLDS else FAILS if number.core else CORRECTED)


@pytest.mark.parametrize("name", NAMES)
def test_measurements_that_changed_places_do_not_confirm(name):
    numbers, draws, _ = zip(*rows(part(smoke(name), name)), strict=True)
    for number in numbers:
        if number.relation != "equal":
            continue
        for other in map(np.mean, draws):
            is_alike = (
                abs(other - number.chapter) <= number.tolerance
            )  # numbers predicted alike may change places
            assert math.isnan(other) or judge(number, other).verdict == (HOLDS if is_alike else FAILS)


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_of_an_exercise_is_right_and_its_mistakes_get_their_word(name, tmp_path):
    exercise = claims()[name].exercise
    path = tmp_path / "answer.py"
    path.write_text(exercise.solution)
    found = check(exercise, path)
    assert found.is_right, found.word
    assert f"`{exercise.function}(" in exercise.task
    assert exercise.mistakes, "a reader who errs gets a word"
    for word, wrong in exercise.mistakes.items():
        values = [np.asarray(wrong(*each), float).tolist() for each in exercise.inputs]
        path.write_text(
            f"values = iter({values!r} * 2)\ncalls = {{}}\n\n"
            f"def {exercise.function}(*args):\n    key = repr(args)\n"
            "    if key not in calls:\n        calls[key] = next(values)\n    return calls[key]\n"
        )
        found = check(exercise, path)
        assert not found.is_right
        assert word in found.word


def test_the_claims_are_numbered_by_their_place_in_the_chapter():
    numbers = [kind.number for kind in claims().values()]
    assert numbers == sorted(set(numbers))
    assert set(numbers) <= set(range(1, 16))


def test_a_claim_is_one_file_of_limited_length():
    long = {"recurrent_gradients": 300, "physics": 300, "rate_network": 300}
    for name in NAMES:
        text = (ROOT / f"train/experiments/chapter/{name}.py").read_text(encoding="utf-8")
        assert len(text.splitlines()) <= long.get(name, 150), name


def test_an_unknown_claim_is_refused_with_the_closest():
    with pytest.raises(ValueError, match=r"`claims` must be among .*Did you mean 'relu_projection'"):
        Chapter(claims=("relu_projectoin",))
    with pytest.raises(ConfigError, match="Did you mean 'relu_projection'"):
        main_exercise("relu_projectoin")
    with pytest.raises(ConfigError, match="The claims are smooth_surrogates, saturation, "):
        main_exercise("zzz")
    with pytest.raises(ValueError, match="`claims` must hold at least one value"):
        Chapter(claims=())


def main_exercise(*words):
    from train.__main__ import _exercise

    return _exercise(list(words))


def test_the_command_shows_task_and_solution_and_checks(tmp_path, capsys):
    assert main(["exercise"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in NAMES)
    assert main(["exercise", "relu_projection"]) == 0
    assert claims()["relu_projection"].exercise.task in capsys.readouterr().out
    assert main(["exercise", "relu_projection", "--solution"]) == 0
    path = tmp_path / "answer.py"
    path.write_text(capsys.readouterr().out)
    assert main(["exercise", "relu_projection", "--check", str(path)]) == 0
    assert "Right" in capsys.readouterr().out
    path.write_text("def nothing(): ...")
    assert main(["exercise", "relu_projection", "--check", str(path)]) == 1
    assert main(["exercise", "relu_projection", "--check", str(tmp_path / "none.py")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_the_report_opens_with_the_verdicts_and_has_a_section_a_claim(tmp_path):
    names = ("relu_projection", "smooth_surrogates")
    whole = results.combine([smoke(name) for name in names]).assign_attrs(smoke="true", study="chapter")
    page = write_report(whole, Chapter, tmp_path).read_text(encoding="utf-8")
    assert page.index('class="verdicts"') < page.index('class="claim"')
    for name in names:
        kind = claims()[name]
        assert page.count(f'<a href="#{name}">{kind.number}. ') == 1
        assert page.count(f'id="{name}"') == 1
    assert len(re.findall(r'<section class="claim"', page)) == 2
    table = Chapter.tables(whole)["Verdicts"]
    assert [str(each).split(". ")[0] for each in table["claim"]] == ["6", "1"] or len(table) == 2
    first = Chapter.findings(whole)[0]
    assert first.startswith("Of 2 claims of the chapter ")


def test_parts_have_the_claims_own_names_and_numbers():
    whole = results.combine([smoke(name) for name in ("relu_projection", "smooth_surrogates")])
    for name in ("relu_projection", "smooth_surrogates"):
        alone, own = part(smoke(name), name), part(whole, name)
        assert list(own["number"].to_numpy()) == list(alone["number"].to_numpy())
        assert base.claim_verdict(own) == base.claim_verdict(alone)
        assert set(own.data_vars) == set(alone.data_vars)
        assert math.isfinite(float(own["measured"][0])) or own["verdict"][0] == UNDECIDED


def test_the_readme_has_a_row_a_claim():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("<!-- verdicts -->") : text.index("<!-- end of verdicts -->")]
    table = table.replace("\\|", "/")
    listed = re.findall(r"^\| (\d+)\. ([^|]+?) \|", table, flags=re.MULTILINE)
    assert [(int(number), title) for number, title in listed] == [
        (kind.number, kind.title.replace("|", "/")) for kind in claims().values()
    ]
    verdicts = re.findall(r"\| ([^|]+?) \|$", table, flags=re.MULTILINE)[2:]  # behind the head
    assert len(verdicts) == len(NAMES)
    assert set(verdicts) <= {HOLDS, CORRECTED, FAILS, UNDECIDED}
