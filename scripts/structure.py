"""Figures on the package's structure: rooms, floors, arrows, cycles, longest files and functions, arguments.

    python scripts/structure.py              # a table of the checkout
    python scripts/structure.py --json       # the same as JSON, to compare with another checkout
    python scripts/structure.py --root DIR   # another checkout

A room is a file or folder directly under the package, `scripts/` is one more, and files of less than 25 lines without
an import of the package do not count. An arrow means that a file of one room imports from another; imports inside
functions and under TYPE_CHECKING count. A room's floor is one above the highest of those that it imports. Code is read,
not run.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "transferkit"
VERBS = ("adapt", "analyze", "decide", "rank", "load", "load_backbone")
VERB_HOMES = (
    "api.py",
    "api/adapting.py",
    "api/measuring.py",
    "api/tuning.py",
    "ranking.py",
    "look.py",
    "result.py",
    "result/result.py",
    "workflow/session.py",
)
SMALL = 25


@dataclass(frozen=True)
class Import:
    """One name that a file imports: the dotted target, its line, and whether it runs when the file is imported."""

    target: str
    line: int
    lazy: bool
    relative: bool = False


def find_imports(tree: ast.AST, *, lazy: bool = False) -> Iterator[Import]:
    """Every import below `tree`. `from a import b` counts as `a.b`: whether b is a module is left to the caller."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = f"{node.module}." if node.module else ""
            yield from (
                Import(f"{prefix}{alias.name}", node.lineno, lazy, relative=node.level > 0) for alias in node.names
            )
        else:
            inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or _is_type_checking(node)
            yield from find_imports(node, lazy=inside)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def part_of(path: Path) -> str:
    """The folder or file directly under the package that a source file belongs to; "" for the package root."""
    first = path.parts[1]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def sources(root: Path = ROOT, folder: str = PACKAGE) -> list[Path]:
    """The Python files of a folder, relative to `root`."""
    return sorted(path.relative_to(root) for path in (root / folder).rglob("*.py"))


def find_arrows(root: Path = ROOT) -> dict[str, set[str]]:
    """Room -> the rooms that it imports from. The package root is "__init__", the scripts are "scripts"."""
    parts = {part_of(path) for path in sources(root)} - {""}
    arrows: dict[str, set[str]] = {}
    for path in [*sources(root), *sources(root, "scripts")]:
        room = "scripts" if path.parts[0] == "scripts" else part_of(path) or "__init__"
        text = (root / path).read_text("utf-8")
        targets = [found.target.split(".") for found in find_imports(ast.parse(text))]
        reached = {
            names[1] if len(names) > 1 and names[1] in parts else "__init__" for names in targets if names[0] == PACKAGE
        }
        if room in arrows or reached or text.count("\n") >= SMALL:
            arrows.setdefault(room, set()).update(reached - {room})
    return arrows


def place_on_floors(arrows: Mapping[str, set[str]]) -> dict[str, int]:
    """Room -> its floor, from 1, without rooms of a cycle and rooms above these."""
    floors: dict[str, int] = {}
    while ready := [
        room
        for room, seen in arrows.items()
        if room not in floors and all(name in floors for name in seen & set(arrows))
    ]:
        floors |= {room: 1 + max((floors[name] for name in arrows[room] & set(arrows)), default=0) for room in ready}
    return floors


@dataclass(frozen=True)
class Function:
    """A function and its number of lines of code, without docstring, comments and empty lines."""

    name: str
    path: str
    lines: int
    arguments: int


def functions(path: Path, text: str) -> Iterator[Function]:
    """Every function and method of a file."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = node.body[1:] if ast.get_docstring(node) is not None else node.body
            rows = text.splitlines()[inside[0].lineno - 1 : inside[-1].end_lineno] if inside else []
            code = [row for row in rows if row.strip() and not row.strip().startswith("#")]
            given = node.args
            yield Function(node.name, str(path), len(code), len(given.posonlyargs + given.args + given.kwonlyargs))


def measure(root: Path = ROOT) -> dict[str, object]:
    """All figures of one checkout."""
    texts = {
        path: (root / path).read_text("utf-8")
        for folder in (PACKAGE, "scripts", "tests")
        for path in sources(root, folder)
    }
    lines = {path: text.count("\n") for path, text in texts.items()}
    known = [found for path, text in texts.items() if path.parts[0] != "tests" for found in functions(path, text)]
    arrows = find_arrows(root)
    floors = place_on_floors(arrows)

    def longest(*folders: str) -> list[str]:
        there = sorted((path for path in lines if path.parts[0] in folders), key=lambda path: -lines[path])
        return [f"{path} {lines[path]}" for path in there[:3]]

    verbs = [one for one in known if one.name in VERBS and one.path in {f"{PACKAGE}/{home}" for home in VERB_HOMES}]
    return {
        "rooms": len(arrows),
        "floors": max(floors.values(), default=0),
        "arrows": sum(map(len, arrows.values())),
        "rooms in cycles": sorted(set(arrows) - set(floors)),
        "lines": {
            folder: sum(n for path, n in lines.items() if path.parts[0] == folder)
            for folder in (PACKAGE, "scripts", "tests")
        },
        "longest files": longest(PACKAGE, "scripts"),
        "longest test files": longest("tests"),
        "longest functions": [
            f"{one.path}:{one.name} {one.lines}" for one in sorted(known, key=lambda one: -one.lines)[:5]
        ],
        "arguments": {one.name: one.arguments for one in verbs},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = measure(options.root.resolve())
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        shown = ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, dict) else value
        print(f"{name:20} {', '.join(map(str, shown)) if isinstance(shown, list) else shown}")


if __name__ == "__main__":
    main()
