"""Pages that are made from the code, so that they cannot say what it does not."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import floors

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
MADE = DOCS / "_generated"
RUNS = DOCS / "gallery" / "runs"


def write(path, text):
    """Write a file, unless it says so already: what is unchanged is not built again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


# --- The zoo ------------------------------------------------------------------------------------------------------


def activation_table():
    """A row an activation: what is exact of it, and what theory computes, with a picture of f and f'."""
    from jaxact import activations

    zoo = dict.fromkeys(activations.parse(name) for name in activations.names())
    head = [
        "picture",
        "name",
        "gain",
        "critical (q*)",
        "Lipschitz",
        "E f(z)",
        "P(f = 0)",
        "range",
        "f(x)",
        "source",
    ]
    rows = ["".join(f"<th>{each}</th>" for each in head)]
    for each in zoo:
        formula = re.sub(r"\d+\.\d{5,}", lambda number: f"{float(number[0]):.5g}", each.formula)
        facts = [f"<code>{each.name}</code>", *_numbers(each), f"<code>{formula}</code>", each.reference]
        rows.append("".join(f"<td>{fact}</td>" for fact in (_thumbnail(each), *facts)))
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    table = f'<div class="full-width"><table class="zoo">\n{body}\n</table></div>'
    return f"```{{raw}} html\n{table}\n```\n"


def _numbers(f):
    from jaxact import theory

    moments = theory.moments(f)
    return [
        _or_none(lambda: f"{float(theory.gain(f)):.4f}"),
        _or_none(lambda: _critical(f)),
        f"{f.lipschitz:.5g}".replace("inf", "∞"),
        f"{float(moments.mean):z.4f}",
        f"{float(moments.zero_probability):.2g}",
        _interval(f.range),
    ]


def _critical(f):
    """The scale and q*, and where signals of second moment 1 end instead if that repels."""
    from jaxact import theory

    point = theory.critical_point(f)
    phase = theory.mean_field(f, sigma_w=float(point.sigma_w)).phase
    repels = "" if phase == "critical" else f", repels: {phase}"
    return f"{float(point.sigma_w):.4f} ({float(point.q_star):.3g}){repels}"


def _interval(values):
    """A range as an interval; infinity is no value."""
    opening = "(" if values.lower == -float("inf") else "["
    closing = ")" if values.upper == float("inf") else "]"
    return f"{opening}{values.lower:.4g}, {values.upper:.4g}{closing}".replace("inf", "∞")


def _or_none(number):
    try:
        return number()
    except ValueError:
        return "none"


def _thumbnail(f, *, size=64, reach=3.0):
    """An SVG of f, solid, and its slope, dashed, over [-3, 3]."""
    import numpy as np

    x = np.linspace(-reach, reach, 121, dtype=np.float32)
    paths = []
    for values, style in ((f(x), 'class="f"'), (f.derivative(x), 'class="slope"')):
        y = np.clip(np.asarray(values), -1.5, 2.5)
        points = " ".join(
            f"{(a + reach) / (2 * reach) * size:.1f},{(2.5 - b) / 4 * size:.1f}"
            for a, b in zip(x.tolist(), y.tolist(), strict=True)
        )
        paths.append(f'<polyline {style} points="{points}"/>')
    zero, middle = 2.5 / 4 * size, size / 2
    axes = f'<path class="axes" d="M0 {zero}H{size}M{middle} 0V{size}"/>'
    title = f"<title>{f.name} and its slope over [-3, 3]</title>"
    return (
        f'<svg viewBox="0 0 {size} {size}" role="img" class="thumbnail">{title}{axes}{"".join(paths)}</svg>'
    )


# --- Commands -----------------------------------------------------------------------------------------------------

COMMANDS = [
    ["jaxact"],
    *(["jaxact", each] for each in ("describe", "compare", "certify", "diagnose")),
    ["train"],
    ["train", "run", "configs/depth_sweep.py"],
    ["train", "plan", "configs/depth_sweep.py"],
    *(["train", each] for each in ("report", "status", "list", "exercise")),
]


def commands():
    """The help of every command as it is printed, and the fields of every optimiser."""
    parts = []
    for words in COMMANDS:
        line = f"python -m {' '.join(words)} --help"
        parts.append(f"## {' '.join(words)}\n\n    {line}\n\n```text\n{_printed(words)}\n```\n")
    return "\n".join([*parts, "## The fields of the optimisers\n", *_optimizers()])


def _optimizers():
    """A table of each optimiser's fields, from its docstring."""
    import dataclasses

    from train.optimizers import Optimizer

    yield "Each stands behind `--optimizer NAME`, its fields as `--optimizer.FIELD VALUE`, - or _ between words.\n"
    yield "| optimiser | field | default | what it is |\n|---|---|---|---|"
    common = dataclasses.fields(Optimizer)
    for each in common:
        yield f"| all | `{each.name}` | {each.default} | {_said(Optimizer, each.name)} |"
    for name, kind in Optimizer.choices().items():
        for each in dataclasses.fields(kind):
            if each.name not in {one.name for one in common}:
                yield f"| `{name}` | `{each.name}` | {each.default} | {_said(kind, each.name)} |"


def _said(kind, field):
    """What the docstring of a dataclass, or of one that it derives from, says of a field."""
    for each in kind.__mro__:
        told = inspect.cleandoc(each.__doc__ or "")
        if found := re.search(rf"^    {field}: (.*(?:\n {{5,}}.*)*)", told, re.MULTILINE):
            return " ".join(found[1].split()).replace("|", "\\|")
    return ""


def _printed(words):
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    line = [sys.executable, "-m", *words, "--help"]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).rstrip()


# --- The chapter and the gallery -------------------------------------------------------------------------------------


def facts_of(study):
    """What `scripts/gallery.py` wrote of a study's run, or None where none was put there."""
    path = RUNS / f"{study}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def chapter_pages():
    """A page a claim, from the texts that `python -m train exercise` and the report show too."""
    from train.experiments.chapter import claims

    run = facts_of("chapter")
    names = []
    for name, claim in claims().items():
        names.append(f"{claim.number:02d}_{name}")
        write(DOCS / "chapter" / f"{names[-1]}.md", _claim_page(name, claim, run))
    for stale in set(DOCS.glob("chapter/[0-9][0-9]_*.md")) - {
        DOCS / "chapter" / f"{each}.md" for each in names
    }:
        stale.unlink()


def _claim_page(name, claim, run):
    exercise = claim.exercise
    figures = [each for each in run["figures"] if each.startswith(f"{name}-")] if run else []
    shown = "\n\n".join(
        _scrolled(f"../gallery/runs/chapter-{each}.svg", f"{claim.title}: {each.partition('-')[2]}")
        for each in figures
    )
    return f"""---
file_format: mystnb
kernelspec: {{name: python3}}
---
# {claim.number}. {claim.title}

**The chapter says.** {claim.says}

    {claim.formula}

Source: {claim.source}.

## Exercise

{exercise.task}

```{{code-cell}}
:tags: [hide-input]
import tempfile
from pathlib import Path

from train.experiments.chapter import claims
from train.experiments.chapter.exercise import check

exercise = claims()["{name}"].exercise
answer = Path(tempfile.mkdtemp()) / "answer.py"
answer.write_text(exercise.solution)
print(check(exercise, answer).word)
```

Your own answer is checked by `python -m train exercise {name} --check MYFILE.py`: it must be
{exercise.tolerance}, which a formula or quadrature reaches and sampling does not. One that is right:

```{{dropdown}} Solution
~~~python
{exercise.solution.strip()}
~~~
```

## Measurement

    python -m train run configs/chapter.py --claims {name}

{_measured(name, run) if run else ""}

{shown}

## In practice

{claim.practice}
"""


def _measured(name, run):
    """The table of a claim's numbers; what is said of its columns below."""
    from train.experiments.chapter.claim import CAPTION

    return f"{_table(run['claims'][name])}\n\n*{CAPTION}*"


def _scrolled(path, alt):
    """A picture that keeps a legible width on a narrow screen, where it is scrolled."""
    return f"````{{div}} wide-picture\n```{{image}} {path}\n:alt: {alt}\n```\n````"


def _table(records):
    head = list(records[0])
    lines = [head, ["---"] * len(head), *([str(each[key]) for key in head] for each in records)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def gallery_pages():
    """A page a study: what it found, the report as it came out, what it cost, and the code of its figures."""
    cards = []
    for path in sorted(RUNS.glob("*.json")):
        run = facts_of(path.stem)
        cards.append(_card(run))
        write(DOCS / "gallery" / f"{path.stem}.md", _gallery_page(run))
    write(MADE / "gallery.md", "````{grid} 1 2 2 2\n:gutter: 3\n\n" + "\n\n".join(cards) + "\n````\n")


def _title(study):
    return study.replace("_", " ").capitalize()


def _pictures(study):
    """The pictures of a study that `scripts/gallery.py` put here, by the figure's name; those of claims have pages."""
    figures = facts_of(study)["figures"]
    names = {figures[0]: f"{study}.svg", **{each: f"{study}-{each}.svg" for each in figures[1:]}}
    there = {name: f"runs/{file}" for name, file in names.items() if (RUNS / file).exists()}
    return there if figures[0] in there else {}


def _card(run):
    study = run["study"]
    picture = f":img-bottom: runs/{study}.svg\n" if (RUNS / f"{study}.svg").exists() else ""
    return (
        f"```{{grid-item-card}} {_title(study)}\n:link: {study}\n:link-type: doc\n"
        f"{picture}\n{run['findings'][0][1]}{_setting(run)}\n```"
    )


def _setting(run):
    """With how much training a study found what it says: its numbers are not to be read without."""
    from train import config

    if run["command"].split(" --output")[0].split()[5:]:  # options that the config does not know
        return ""
    study = config.load(ROOT / "configs" / f"{run['study']}.py")
    if not all(hasattr(study, name) for name in ("width", "num_steps", "optimizer", "learning_rates")):
        return ""
    rates = ", ".join(map(str, study.learning_rates))
    rates = f"the best of the rates {rates}" if len(study.learning_rates) > 1 else f"the rate {rates}"
    weights = (
        ", weights drawn with `sigma_w^2 E f'(z)^2 = 1`," if getattr(study, "sigma_w", 0) is None else ""
    )
    return (
        f" That is for networks of width {study.width}{weights} after {study.num_steps} steps of "
        f"{study.optimizer.name} at {rates}, {len(study.seeds)} seeds, batches of {study.batch_size} of {study.task}."
    )


def _gallery_page(run):
    study = run["study"]
    minutes = float(run["wall_seconds"]) / 60
    findings = [f"- {topic and f'**{topic}.** '}{text}" for topic, text in run["findings"][1:]]
    more = (
        f"\n```{{dropdown}} {len(findings) - 3} more\n" + "\n".join(findings[3:]) + "\n```"
        if findings[3:]
        else ""
    )
    pictures = _pictures(study)
    first = (
        _scrolled(pictures[run["figures"][0]], f"the first figure of the study {study}") if pictures else ""
    )
    return f"""# {_title(study)}

{run["findings"][0][1]}{_setting(run)}

{first}

{{download}}`The whole report <runs/{study}.html>`, an interactive page of its own, as it came out of

    {run["command"].split(" --output")[0].strip()}

Cost: {minutes:.1f} minutes on {run["device"]}: the times of all cells added, which run side by side
where there are cores, so that the run itself is over sooner. Started {run["started"][:16]} UTC from commit
{run["git_commit"][:7]}.

## Findings

{chr(10).join(findings[:3])}
{more}

## Figures

Each opens in the report, where values are shown under the pointer.

{_figures(run, pictures)}

## Code

The study's config, and below it the code of its figures:

```{{literalinclude}} ../../configs/{study}.py
```

```{{literalinclude}} ../../{_source(study)}
```
"""


def _figures(run, pictures):
    """Links to the figures' places in the report, each with its picture where there is one."""
    study, parts = run["study"], []
    for name in run["figures"]:
        link = f'<a href="runs/{study}.html#title-{name}">{_title(name)}</a>'
        parts.append(f"```{{raw}} html\n<p>{link}</p>\n```")
        if name != run["figures"][0] and name in pictures:
            parts.append(_scrolled(pictures[name], f"{_title(name)}, of the study {study}"))
    return "\n\n".join(parts)


def reports(app, error):
    """Put the reports where the gallery's links to their figures lead."""
    if error is None and app.builder.format == "html":
        for path in RUNS.glob("*.html"):
            target = Path(app.outdir) / "gallery" / "runs" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _source(study):
    """The file that draws a study's figures."""
    found = json.loads((RUNS / f"{study}.json").read_text(encoding="utf-8"))["experiment"]
    module = found.partition(":")[0].replace(".", "/")
    return f"{module}.py" if (ROOT / f"{module}.py").exists() else f"{module}/__init__.py"


# --- Verdicts -----------------------------------------------------------------------------------------------------


def verdicts():
    """The README's table, as the documentation's own."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.partition("<!-- verdicts -->")[2].partition("<!-- end of verdicts -->")[0].strip() + "\n"


def architecture():
    """The floors, drawn from the code's own imports."""
    return f"```{{raw}} html\n{floors.picture(ROOT)}\n```\n"


def generate(app):
    """Write all of them."""
    write(MADE / "activations.md", activation_table())
    write(MADE / "floors.md", architecture())
    write(MADE / "commands.md", commands())
    write(MADE / "verdicts.md", verdicts())
    chapter_pages()
    gallery_pages()


def setup(app):
    """Before Sphinx looks for pages."""
    app.connect("builder-inited", generate)
    app.connect("build-finished", reports)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
