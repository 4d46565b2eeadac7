"""The import graph of the package, measured: rooms, floors, arrows, circles, long files.

``python tests/support/import_graph.py`` prints the figures and ends with 1 when one is over its
limit. A room is an entry of ``src/ckptdb``; an arrow is an import between two rooms, also one
inside a function or for type checkers only. Floors are counted along the longest way down.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "ckptdb"
LIMITS = {"rooms": 16, "floors": 9, "arrows": 60, "circles": 0, "long files": 0, "wide classes": 0}
LONGEST_FILE = 400
MOST_METHODS = 15
FACADES = frozenset({"CheckpointManager", "Registry"})
"""Classes that stand for everything a user does, and may have more public methods."""

Graph = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Figures:
    """What was measured of a package.

    Attributes:
        rooms: Imports of each room, by room.
        files: Imports of each file, by dotted name.
        long_files: Lines of each file over the limit.
        wide_classes: Public methods of each class over the limit.
    """

    rooms: Graph
    files: Graph
    long_files: Mapping[str, int]
    wide_classes: Mapping[str, int]

    @property
    def circles(self) -> tuple[tuple[str, ...], ...]:
        """Import circles, between rooms and between files, each with all that belong to it."""
        return (*find_circles(self.rooms), *find_circles(self.files))

    @property
    def counts(self) -> dict[str, int]:
        """Each figure that has a limit."""
        return {
            "rooms": len(self.rooms),
            "floors": 0 if find_circles(self.rooms) else max(floors(self.rooms).values()),
            "arrows": sum(map(len, self.rooms.values())),
            "circles": len(self.circles),
            "long files": len(self.long_files),
            "wide classes": len(self.wide_classes),
        }


def measure(source: Path = SOURCE) -> Figures:
    """Return the figures of the package in a directory."""
    paths = {name_of(path, source): path for path in sorted(source.rglob("*.py"))}
    trees = {name: ast.parse(path.read_text()) for name, path in paths.items()}
    files = {
        name: frozenset(imports(tree, name, paths.keys())) - {name} for name, tree in trees.items()
    }
    rooms: dict[str, set[str]] = {
        path.name: set() for path in source.iterdir() if path.name != "__pycache__"
    }
    for name, found in files.items():
        room = room_of(name, paths, source)
        rooms[room] |= {room_of(other, paths, source) for other in found} - {room}
    lines = {name: len(path.read_text().splitlines()) for name, path in paths.items()}
    return Figures(
        {room: frozenset(found) for room, found in rooms.items()},
        files,
        {name: count for name, count in lines.items() if count > LONGEST_FILE},
        {
            cls: count
            for tree in trees.values()
            for cls, count in methods(tree)
            if count > MOST_METHODS
        },
    )


def name_of(path: Path, source: Path) -> str:
    """Return the dotted name of a module by its file."""
    parts = path.relative_to(source.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name: str, paths: Mapping[str, Path], source: Path) -> str:
    """Return the entry of the package's directory that a module is in."""
    return paths[name].relative_to(source).parts[0]


def imports(tree: ast.Module, name: str, known: AbstractSet[str]) -> Iterator[str]:
    """Yield the modules of the package that a module imports, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError(f"{name} imports relatively in line {node.lineno}")
        elif isinstance(node, ast.ImportFrom):
            found = (f"{node.module}.{alias.name}" for alias in node.names)
            named = {below if below in known else str(node.module) for below in found}
            yield from named & known


def methods(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield each class that is no facade with the number of its public methods."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name not in FACADES:
            functions = [
                n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
            public = [n for n in functions if not n.name.startswith("_") and not is_property(n)]
            yield node.name, len(public)


def is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tell whether a function is read like an attribute."""
    return any(isinstance(d, ast.Name) and d.id == "property" for d in function.decorator_list)


def find_circles(graph: Graph) -> list[tuple[str, ...]]:
    """Return the sets of modules that all import each other, directly or not."""
    reached = {start: set(reachable(graph, start)) for start in graph}
    return sorted(
        {
            tuple(sorted({start} | {one for one in found if start in reached[one]}))
            for start, found in reached.items()
            if start in found
        }
    )


def reachable(graph: Graph, start: str) -> Iterator[str]:
    """Yield everything that is imported from a module on, itself only through a circle."""
    found, pending = set[str](), list(graph[start])
    while pending:
        if (module := pending.pop()) not in found:
            found.add(module)
            pending += graph[module]
            yield module


def floors(graph: Graph) -> dict[str, int]:
    """Return the floor of each room: one above the highest that it imports."""
    found: dict[str, int] = {}
    for room in TopologicalSorter(graph).static_order():
        found[room] = 1 + max((found[below] for below in graph[room]), default=0)
    return found


def main() -> int:
    """Print the figures; return 1 when one is over its limit."""
    figures = measure()
    counts = figures.counts
    for name, count in counts.items():
        print(f"{name:<14}{count:>4}  (at most {LIMITS[name]})")
    if not find_circles(figures.rooms):
        for room, floor in sorted(floors(figures.rooms).items(), key=lambda pair: -pair[1]):
            print(f"  {floor}  {room:<12} -> {' '.join(sorted(figures.rooms[room]))}")
    for circle in figures.circles:
        print("circle:", ", ".join(circle))
    for what, count in {**figures.long_files, **figures.wide_classes}.items():
        print(f"over the limit: {what} ({count})")
    return int(any(counts[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
