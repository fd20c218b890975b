"""The order of the package's folders, and which imports may be inside functions."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "pneumo"

# From the bottom to the top: a folder imports only from those of earlier lines, and from itself
ORDER = [
    {"runtime", "inference"},
    {"data"},
    {"evaluation"},
    {"training"},
    {"experiment", "tracking"},
    {"reporting"},
    {"tuning"},
    {"commands"},
    {"__main__"},
]
LEVELS = {name: level for level, names in enumerate(ORDER) for name in names}

# Imports inside of functions, by what they wait for
TENSORFLOW = "TensorFlow takes seconds, and a user's mistake is found without it"
HEAVY = "the arguments are checked, and the help is printed, without it"
OPTIONAL = "it is an extra that need not be installed"
RARE = "most processes do not need it"
WAITING = {
    "commands.evaluate: pneumo.evaluation.preprocessing_skew": TENSORFLOW,
    "commands.evaluation: pneumo.evaluation.heat_maps": TENSORFLOW,
    "commands.evaluation: pneumo.inference.logits": TENSORFLOW,
    "commands.options.inputs: pneumo.tuning.spec": HEAVY,
    "commands.predict: pneumo.evaluation.heat_maps": TENSORFLOW,
    "commands.train: pneumo.tuning.trial": TENSORFLOW,
    "commands.tune: pneumo.tuning.ensemble": TENSORFLOW,
    "commands.tune: pneumo.tuning.planning.planner": TENSORFLOW,
    "commands.tune: pneumo.tuning.trial": TENSORFLOW,
    "commands.tune: pneumo.tuning.worker": TENSORFLOW,
    "commands.worker: pneumo.tuning.worker": TENSORFLOW,
    "data.attributes: pneumo.inference.dicom": RARE,
    "inference.decode: pneumo.inference.dicom": RARE,
    "runtime.tensorflow_import: tensorflow": TENSORFLOW,
    "tracking.model_files: pneumo.inference.logits": TENSORFLOW,
    "tracking.model_files: pneumo.inference.pyfunc": TENSORFLOW,
    "training.backbones: keras": TENSORFLOW,
    "__main__: pneumo.commands.options.inputs": HEAVY,
    "__main__: pneumo.tracking": HEAVY,
    "training.config: numpy": HEAVY,
    "tuning.launchers.ray: ray": OPTIONAL,
    "runtime.machine: pynvml": RARE,
}

FILES = sorted(file for file in PACKAGE.rglob("*.py") if file.name != "__init__.py")


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(file: Path) -> Iterator[tuple[str, bool]]:
    """Yield each module that a file imports from, and whether a function does it."""
    tree = ast.parse(file.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inner = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.module, id(node) in inner
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inner


def lines_of_code(file: Path) -> int:
    """Count lines without docstrings, comments and blank lines."""
    text = file.read_text()
    skipped = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENCODING", "ENDMARKER"}
    found: set[int] = set()
    for token in tokenize.tokenize(io.BytesIO(text.encode()).readline):
        if tokenize.tok_name[token.type] not in skipped:
            found |= set(range(token.start[0], token.end[0] + 1))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            found -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(found)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_folder_imports_only_what_is_below_it(file):
    own = module_of(file).partition(".")[0]
    imported = {name.split(".")[1] for name, _ in imports_of(file) if name.startswith("pneumo.")}
    assert "pneumo" not in {name for name, _ in imports_of(file)}
    assert [name for name in imported - {own} if LEVELS[name] >= LEVELS[own]] == []


def test_imports_that_wait_have_a_reason():
    found = {
        f"{module_of(file)}: {name}"
        for file in FILES
        for name, in_function in imports_of(file)
        if in_function
    }
    assert found == WAITING.keys()


def test_no_module_imports_itself_by_way_of_others():
    modules = {module_of(file) for file in FILES}
    imported = {
        module_of(file): {name.removeprefix("pneumo.") for name in _imported_modules(file)}
        for file in FILES
    }
    assert set().union(*imported.values()) <= modules
    while leaves := {name for name, others in imported.items() if not others}:
        imported = {
            name: others - leaves for name, others in imported.items() if name not in leaves
        }
    assert imported == {}


def _imported_modules(file: Path) -> Iterator[str]:
    """Yield the modules of the package that a file imports, or imports something from."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("pneumo."):
            for alias in node.names:
                inner = Path(ROOT, *node.module.split("."), f"{alias.name}.py")
                yield f"{node.module}.{alias.name}" if inner.exists() else node.module


def test_files_and_folders_are_small():
    sizes = {module_of(file): lines_of_code(file) for file in FILES}
    assert {name: size for name, size in sizes.items() if size > 250} == {}
    folders = {file.parent for file in FILES}
    counts = {folder.name: len([*folder.glob("[!_]*.py")]) for folder in folders}
    assert {name: count for name, count in counts.items() if count > 9} == {}
