"""What docstrings must say beyond pydoclint's checks."""

import ast
from pathlib import Path

import pytest

import aspire_mom

PACKAGE = Path(aspire_mom.__file__).parent
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent.name != "cli")


def definitions(node: ast.AST, owner: ast.ClassDef | None = None):
    """Yield public functions and methods, with the class that documents each."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from definitions(child, child)
        elif isinstance(child, ast.FunctionDef):
            if child.name in ("__init__", "__post_init__"):
                yield child, owner
            elif not child.name.startswith("_"):
                yield child, child


def raised(function: ast.FunctionDef) -> set[str]:
    """Return the names of the exceptions that a function raises itself."""
    inner = {
        n
        for nested in ast.walk(function)
        if isinstance(nested, ast.FunctionDef) and nested is not function
        for n in ast.walk(nested)
    }
    calls = (
        n.exc for n in ast.walk(function) if isinstance(n, ast.Raise) and n not in inner
    )
    return {
        call.func.id
        for call in calls
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    } - {"NotImplementedError", "AssertionError"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_docstrings_say_what_is_raised(path):
    missing = [
        f"{function.name} (line {function.lineno}) raises {name}"
        for function, documented in definitions(ast.parse(path.read_text("utf-8")))
        for name in raised(function)
        if documented is not None
        and f":raises {name}:" not in (ast.get_docstring(documented) or "")
        and f":raises {name}:" not in (ast.get_docstring(function) or "")
    ]
    assert not missing
