"""What strangers read: public docstrings say what they must; links and commands of the pages are ones that exist."""

import ast
import contextlib
import importlib
import inspect
import re
import shlex
import textwrap
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import jaxact
from jaxact import __main__ as library
from train import request
from train.experiments.chapter import claims

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    if not {"_build", "_generated", "jupyter_execute"} & set(path.parts)
)

# --- Docstrings ---------------------------------------------------------------------------------------------------

PACKAGES = [
    *(f"jaxact.{name}" for name in jaxact.__all__ if isinstance(getattr(jaxact, name), ModuleType)),
    "jaxact.theory.initializers",
]
_REFUSAL = re.compile(r"(ArgumentError|ArgumentTypeError|FunctionError|ValueError|TypeError)$")
_NOUN = re.compile(r"(The|A|An|All|Whether|What|How|Every|One|Two|\[|`|f\(x\)|E f)")
_WORTH = re.compile(r"\b(exact|bound|estimate|approximat|asymptotic)", re.IGNORECASE)
_SOURCE = re.compile(r"\b(1[89]|20)\d\d\b|arXiv")
#: functions of theory, probes and lipschitz without a paper: definitions, and what puts others together
_NO_PAPER = {
    *(f"jaxact.lipschitz.{name}" for name in ("ladder", "lower_bound")),
    *(
        f"jaxact.probes.{name}"
        for name in ("gradient_norms", "jacobian", "layer_statistics", "spectrum_summary")
    ),
    *(f"jaxact.theory.{name}" for name in ("compare", "moments", "predict", "recipe")),
}
_NO_NUMBER = {"jaxact.theory.recipe"}  # but lines of Python


def public():
    """Every public function and class that is our own: (name, object)."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == package
        ]
        for name in names:
            value = getattr(module, name)
            if isinstance(value, FunctionType | type) and value.__module__.startswith("jaxact"):
                yield f"{package}.{name}", value


def functions():
    return {name: value for name, value in public() if isinstance(value, FunctionType)}


def sections(docstring):
    """A docstring's sections by name; what comes first is ""."""
    found, name = {"": []}, ""
    for line in inspect.cleandoc(docstring).splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Yields|Attributes|Example|Note)s?:", line):
            name = line.rstrip(":")
        found.setdefault(name, []).append(line)
    return {key: "\n".join(lines) for key, lines in found.items()}


def refuses(function):
    """Whether a function's own body raises what a caller's mistake raises, or calls a check that does."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            name = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
            if _REFUSAL.search(name):
                return True
        if isinstance(node, ast.Call) and re.match(r"_?check_", ast.unparse(node.func).rpartition(".")[2]):
            return True
    return False


def lacks(name, function):
    """What a function's docstring does not say, in words."""
    said = sections(function.__doc__ or "")
    signature = inspect.signature(inspect.unwrap(function))
    if not said[""]:
        yield "a docstring"
        return
    for parameter in signature.parameters.values():
        if not re.search(
            rf"^ +(\*{{0,2}}{parameter.name}|.*\b{parameter.name}\b.*?):", said.get("Args", ""), re.M
        ):
            yield f"the argument `{parameter.name}`"
    returns = signature.return_annotation not in (None, "None", inspect.Signature.empty)
    if returns and not {"Returns", "Yields"} & set(said) and not _NOUN.match(said[""]):
        yield "what it returns"
    if refuses(function) and "Raises" not in said:
        yield "what it raises"
    if re.match(r"jaxact\.(theory|probes|lipschitz)\.\w+$", name):
        if name not in _NO_NUMBER and not _WORTH.search(function.__doc__):
            yield "whether the number is exact, a bound or an estimate"
        if name not in _NO_PAPER and not _SOURCE.search(function.__doc__):
            yield "a source"


def test_every_public_function_says_what_it_takes_gives_and_refuses():
    missing = {name: found for name, each in functions().items() if (found := [*lacks(name, each)])}
    assert missing == {}
    assert len(functions()) > 130


def test_every_public_class_and_method_has_a_docstring():
    classes = {name: each for name, each in public() if isinstance(each, type)}
    bare = [name for name, each in classes.items() if not (each.__doc__ or "").strip()]
    for name, each in classes.items():
        own = {key: value for key, value in vars(each).items() if not key.startswith("_")}
        bare += [
            f"{name}.{key}"
            for key, value in own.items()
            if inspect.isfunction(value) and not inspect.getdoc(value)
        ]
    assert bare == []


# --- Links and images ---------------------------------------------------------------------------------------------

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_DIRECTIVE = re.compile(
    r"^ *[`:]{3,}\{(image|figure|include|literalinclude)\} (\S+)\n((?: *:.*\n)*)", re.MULTILINE
)
_FENCE = re.compile(r" *(`{3,}|~{3,})(\{(?:image|figure|include|literalinclude|grid))?")


def outside_code(path):
    """A page's lines but for blocks of code; what a directive shows is none."""
    fence, is_shown = "", True
    for line in path.read_text(encoding="utf-8").splitlines():
        opens = _FENCE.match(line) if not fence else None
        if opens:
            fence, is_shown = opens[1], opens[2] is not None
        if not fence or is_shown:
            yield line
        if fence and not opens and line.strip() == fence:
            fence = ""


def prose(path):
    """A page without its blocks and pieces of code."""
    return re.sub(r"(?<!`)`[^`\n]+`(?!`)", "`code`", "\n".join(outside_code(path)))


def anchors(path):
    """What a page's headings are called in links."""
    titles = re.findall(r"^#{1,3} (.+)$", "\n".join(outside_code(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def made_anchors(path):
    """What the headings are called that are made for a page as the site is built."""
    if "_generated/" not in path.read_text(encoding="utf-8"):
        return set()
    titles = re.findall(r"#{1,3} ([\w ]+)", (ROOT / "docs/_ext/generated.py").read_text(encoding="utf-8"))
    return {title.strip().lower().replace(" ", "-") for title in titles}


def is_there(page, target):
    """Whether a file, or a heading of a page, that a page points at exists, or is made as the pages are built."""
    name, _, heading = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    if "_generated" in path.parts:
        return f'"{path.name}"' in (ROOT / "docs/_ext/generated.py").read_text(encoding="utf-8")
    return path.exists() and (not heading or heading in anchors(path) | made_anchors(path))


def pointed_at(page):
    """(target, alternative text) of every link and image; None as text where it is no image."""
    text = prose(page)
    for mark, words, target in _LINK.findall(text):
        yield target, words if mark else None
    for kind, target, options in _DIRECTIVE.findall(text):
        alt = re.search(r":alt: *(\S.*)", options)
        yield target, (alt[1] if alt else "") if kind in ("image", "figure") else None


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_point_at_what_exists_and_images_are_told(page):
    found = [each for each in pointed_at(page) if "://" not in each[0]]
    assert [target for target, _ in found if not is_there(page, target)] == []
    assert [target for target, alt in found if alt == ""] == []


def test_links_are_looked_at(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A title\n[x](gone.md) [y](#a-title) [z](#no)\n![](a.png)\n```{image} b.png\n```\n```\n[w](code.md)\n```\n"
    )
    assert [(target, is_there(page, target)) for target, _ in pointed_at(page)] == [
        ("gone.md", False), ("#a-title", True), ("#no", False), ("a.png", False), ("b.png", False)
    ]  # fmt: skip
    assert [alt for _, alt in pointed_at(page)] == [None, None, None, "", ""]


# --- Commands -----------------------------------------------------------------------------------------------------

_COMMAND = re.compile(r"(?<![\"'])python -m (jaxact|train)\b([^`\n]*)")


def commands():
    """Every command line of the pages: (program, words)."""
    for page in PAGES:
        for program, rest in _COMMAND.findall(page.read_text(encoding="utf-8").replace("\\\n", " ")):
            line = re.split(r"\s#|&&|\s>|[.,;]?$", rest)[0]
            if "$" in line:  # of a cell, which is run as the site is built
                continue
            yield program, tuple(shlex.split(line.replace("CONFIG", "configs/depth_sweep.py")))


NAMES_ALONE = ((), ("run",), ("--help",), ("--version",))


def parse(program, words):
    """Read a command line as its program does, without running it."""
    if words in NAMES_ALONE or "COMMAND" in words:
        return
    if program == "jaxact":
        library._check_command(words[0])
        library._parser().parse_args(list(words))
    elif words[0] == "run":
        request.parse(words[1:])
    elif words[0] == "plan":
        request.parse_plan(words[1:])
    else:
        parse_of_a_run(*words)


def parse_of_a_run(command, *words):
    """The other commands take a run, which need not be there, or a claim, and few options."""
    options = {"resume": RUN_OPTIONS, "report": {"--trust"}, "status": {"--follow"}, "list": set()}
    options["exercise"] = {"--check", "--solution"}
    known = options[command]
    assert [word for word in words if word.startswith("--") and word not in known] == []
    if command == "exercise" and words and not words[0].startswith("-"):
        assert words[0] in claims()


RUN_OPTIONS = {f"--{name.replace('_', '-')}" for name, *_ in request._RUN_OPTIONS}


@pytest.mark.parametrize(("program", "words"), sorted(set(commands())))
def test_commands_of_the_pages_are_ones_that_the_programs_take(program, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    with contextlib.suppress(SystemExit) if "--help" in words else contextlib.nullcontext():
        parse(program, words)


@pytest.mark.parametrize(
    "line",
    [
        "run configs/depth_sweep.py --depts 3",
        "run configs/gone.py",
        "resume RUN --smok",
        "exercise no_claim",
        "rn",
    ],
)
def test_commands_are_looked_at(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, SystemExit, ValueError, KeyError)):
        parse("train", tuple(line.split()))
