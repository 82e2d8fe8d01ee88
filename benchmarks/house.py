"""
Lines of each room of the package, and branches on the kind of basis outside `bases/`.

    python benchmarks/house.py
"""

import re
from collections import Counter
from pathlib import Path

import aspire_mom

KIND = re.compile(
    r"isinstance\([^#]*\b(?:Cartesian|Polar)Basis\b"
    r"|(?:\bif|\belif|\bwhile|\band|\bor|\bnot|\bassert) [^#]*\.inplane_average\b"
    r"|getattr\([^#]*\"inplane_average\""
    r"|\.inplane_average (?:if|and|or)\b"
    r"|\b(?:type\([^#]*\)|__class__) (?:is|==|in)\b[^#]*Basis\b"
    r"|\b(?:if|not|and|or) (?:self\.)?(?:cartesian|polar)\b"
    r"|case (?:Cartesian|Polar)Basis\b"
)


def main() -> None:
    package = Path(aspire_mom.__file__).parent
    lines, files, longest = Counter(), Counter(), []
    branches = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        room = f"{name.parts[0]}/" if len(name.parts) > 1 else "top level"
        text = path.read_text(encoding="utf-8").splitlines()
        lines[room] += len(text)
        files[room] += 1
        longest.append((len(text), name))
        if room != "bases/":
            branches += [
                f"{name}:{i}: {line.strip()}"
                for i, line in enumerate(text, 1)
                if KIND.search(line)
            ]
    print(f"{'room':<14} {'files':>5} {'lines':>7}")
    for room in sorted(lines):
        print(f"{room:<14} {files[room]:>5} {lines[room]:>7}")
    print(f"{'in all':<14} {files.total():>5} {lines.total():>7}")
    print(f"longest file: {max(longest)[1]}, {max(longest)[0]} lines")
    print(f"branches on the kind of basis outside bases/: {len(branches)}")
    print(*(f"    {branch}" for branch in branches), sep="\n")


if __name__ == "__main__":
    main()
