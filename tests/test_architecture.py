"""docs/architecture.md is about this code: every name on the page exists, every number and every layer is the real
one."""

import ast
import functools
import operator
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ROOT / "src" / "jaxspec" / "_src"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPANS = sorted(set(re.findall(r"`([^`\n]+)`", BLOCK.sub("", PAGE))))
FOREIGN = ("jax", "queue")
"""Modules of others that the page names."""


@functools.cache
def modules():
    """The syntax trees of all files of the library, by path."""
    return {path: ast.parse(path.read_text()) for path in (ROOT / "src").rglob("*.py")}


def nodes(*kinds):
    return (node for tree in modules().values() for node in ast.walk(tree) if isinstance(node, kinds))


@functools.cache
def classes():
    return {node.name for node in nodes(ast.ClassDef)}


@functools.cache
def functions():
    return {node.name for node in nodes(ast.FunctionDef)}


@functools.cache
def variables():
    """The names of arguments, attributes and fields."""
    named = {node.arg for node in nodes(ast.arg)} | {node.attr for node in nodes(ast.Attribute)}
    return named | {node.target.id for node in nodes(ast.AnnAssign) if isinstance(node.target, ast.Name)}


@functools.cache
def constants():
    """The source of each constant of a module, as a list, for two modules may have the same name."""
    found = {}
    for tree in modules().values():
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                found.setdefault(ast.unparse(target), []).append(ast.unparse(node.value))
    return found


@functools.cache
def threads():
    """The names of the threads that the library starts."""
    strings = (node.value for node in nodes(ast.Constant) if isinstance(node.value, str))
    return {text for text in strings if re.fullmatch(r"jaxspec-[a-z-]+", text)}


def problem(span):
    """What is wrong with a `code` span of the page; None: nothing."""
    if span.startswith("[") or span == "next":
        return None  # a shape; a method of Python's iterators
    if "/" in span:
        base = ROOT if span.startswith("src/") else CODE
        return None if list(base.glob(span)) else "there is no such file"
    if constant := re.fullmatch(r"(_?[A-Z][A-Z_]+) = (.+)", span):
        name, value = constant.groups()
        values = constants().get(name)
        return None if values and ast.unparse(ast.parse(value)) in values else f"{name} is {values} in the code"
    if span.startswith("jaxspec-"):
        return None if span in threads() else "no thread has this name"
    if target := re.fullmatch(r"make (.+)", span):
        makefile = (ROOT / "Makefile").read_text()
        return None if re.search(rf"^{target[1]}:", makefile, re.MULTILINE) else "make has no such target"
    if span.split(".")[0] in FOREIGN:
        module, _, name = span.partition(".")
        return None if operator.attrgetter(name)(import_module(module)) else "falsy"
    if call := re.fullmatch(r"(\w+)\(\)", span):
        return None if call[1] in functions() else "no function has this name"
    if re.fullmatch(r"[A-Z]\w*[a-z]\w*", span):
        return None if span in classes() else "no class has this name"
    if word := re.fullmatch(r"([a-z_]+)(=\w+)?", span):
        return None if word[1] in variables() else "nothing has this name"
    return "the test does not know what this is"


@pytest.mark.parametrize("span", SPANS)
def test_every_name_on_the_page_exists(span):
    assert problem(span) is None


@pytest.mark.parametrize(
    "span",
    [
        "Programm",
        "steps_off()",
        "MAX_IN_FLIGHT = 3",
        "device/replica.py",
        "jaxspec-hosts",
        "make tea",
        "modelfn",
        "a b",
    ],
)
def test_the_test_above_can_fail(span):
    assert problem(span)


def test_the_page_is_full_of_names():
    assert len(SPANS) > 40


def test_every_thread_is_on_the_page():
    assert threads() == {span for span in SPANS if span.startswith("jaxspec-")}


def test_the_layers_are_those_that_make_check_enforces():
    drawing = BLOCK.findall(PAGE)[0]
    drawn = [re.split(r" {2,}", line)[0] for line in drawing.splitlines()]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (enforced,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert drawn == enforced
    folders = {path.name for path in CODE.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert folders == {name for layer in enforced for name in layer.split(" | ")}


def test_it_is_one_page():
    assert len(PAGE.splitlines()) <= 120


LOCAL_FILES = {"os.path", "open", "io.open", "pathlib", "shutil", "glob"} | {
    f"os.{name}"
    for name in [
        "access",
        "listdir",
        "makedirs",
        "mkdir",
        "open",
        "remove",
        "rename",
        "replace",
        "rmdir",
        "scandir",
        "stat",
        "unlink",
        "walk",
    ]
}
ON_THE_DISK = {
    "base/paths.py": "makes local paths absolute",
    "base/files.py": "the one place where files on the disk and in a bucket are told apart",
    "checkpoint/removal.py": "locks and renames the directories of checkpoints, on a disk alone",
    "checkpoint/backend.py": "makes a link in a temporary directory",
    "step/error_notes.py": "looks at the paths of source files",
}


def local_files(tree):
    """What a module uses that works on the disk alone."""
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            used |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return used & LOCAL_FILES


def test_a_model_dir_may_be_in_a_bucket_for_every_module():
    found = {str(path.relative_to(CODE)) for path, tree in modules().items() if local_files(tree)}
    assert found == set(ON_THE_DISK)


@pytest.mark.parametrize(
    "code",
    ["import os\nos.path.join(a, b)", "with open(p) as f: pass", "from pathlib import Path", "from os import path"],
)
def test_the_test_of_local_files_can_fail(code):
    assert local_files(ast.parse(code))
