"""
Print the lines of each room of the package, and the branches on the kind of basis that
stand outside `bases/`.

    python benchmarks/house.py
"""

import ast
from collections import Counter
from pathlib import Path

import aspire_mom

KINDS = {"CartesianBasis", "PolarBasis"}
# Names whose truth tells the kind of a basis.
TELLING = {"inplane_average", "cartesian", "is_cartesian", "polar", "is_polar"}


def names(node: ast.AST) -> set[str]:
    """Return all names and attributes in an expression."""
    return {
        getattr(n, "id", getattr(n, "attr", getattr(n, "value", None)))
        for n in ast.walk(node)
        if isinstance(n, ast.Name | ast.Attribute)
        or (isinstance(n, ast.Constant) and isinstance(n.value, str))
    }


def branches(tree: ast.Module) -> set[int]:
    """Return the lines that ask for the kind of a basis."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            if names(node.args[1]) & KINDS:
                lines.add(node.lineno)
        elif isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
            if names(node.test) & TELLING:
                lines.add(node.test.lineno)
        elif isinstance(node, ast.BoolOp):
            lines |= {v.lineno for v in node.values if names(v) & TELLING}
        elif isinstance(node, ast.MatchClass) and names(node.cls) & KINDS:
            lines.add(node.cls.lineno)
    return lines


def main() -> None:
    package = Path(aspire_mom.__file__).parent
    files, lines, longest, found = Counter(), Counter(), (0, ""), []
    for path in sorted(package.rglob("*.py")):
        name, text = path.relative_to(package), path.read_text(encoding="utf-8")
        room = f"{name.parts[0]}/" if len(name.parts) > 1 else "top level"
        rows = text.splitlines()
        files[room] += 1
        lines[room] += len(rows)
        longest = max(longest, (len(rows), str(name)))
        if room != "bases/":
            asking = sorted(branches(ast.parse(text)))
            found += [f"    {name}:{n}: {rows[n - 1].strip()}" for n in asking]
    print(f"{'room':<14} {'files':>5} {'lines':>7}")
    for room in sorted(lines):
        print(f"{room:<14} {files[room]:>5} {lines[room]:>7}")
    print(f"{'in all':<14} {files.total():>5} {lines.total():>7}")
    print(f"longest file: {longest[1]}, {longest[0]} lines")
    print(f"branches on the kind of basis outside bases/: {len(found)}")
    print("\n".join(found))


if __name__ == "__main__":
    main()
