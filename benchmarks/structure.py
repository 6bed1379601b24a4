"""`python -m benchmarks.structure [ROOT]`: the structure of a checkout in figures (default: this checkout).

It reads the files with `ast` and imports none of them, so an older tree is measured as well as this one. The tests
in tests/test_architecture.py use the same functions. An import by a string is not seen.
"""

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("muxfer", "proxy_models", "benchmarks")
FOLDERS = ("muxfer", "benchmarks", "tests", "proxy_models")
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
TYPING_TESTS = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
DRIVING = ({"open_ledger", "MlflowLedger"}, {"drive", "driving", "acquire"}, {"run_study"})
Graph = Mapping[str, Collection[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Kind(IntEnum):
    """When an import runs: with its module, when its function is called, or never (for types alone)."""

    MODULE = 0
    LATE = 1
    TYPING = 2


@dataclass(frozen=True, kw_only=True)
class Import:
    importer: str
    imported: str
    kind: Kind
    line: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file, or a function from its first decorator to its last line. `path` is relative to the root."""

    path: str
    num_lines: int
    name: str = ""
    line: int = 1

    def __str__(self) -> str:
        place = f"{self.path}:{self.line} {self.name}" if self.name else self.path
        return f"{place}, {self.num_lines} lines"


def files(root: Path, folders: Iterable[str] = FOLDERS) -> list[Path]:
    """Every Python file below these folders of the root."""
    return sorted(file for folder in folders for file in (root / folder).rglob("*.py"))


def modules(root: Path, packages: Iterable[str] = PACKAGES) -> dict[str, Path]:
    """Every module of these packages by its dotted name. The `__init__` of a package bears the package's name."""
    named = {}
    for file in files(root, packages):
        parts = file.relative_to(root).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return named


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, module: str, known: Collection[str]) -> set[Import]:
    """What this module imports of the known ones.

    `from muxfer.x import y` is an import of muxfer.x.y where that is a module, else of muxfer.x. The packages that
    Python runs on the way to a module do not count.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    arrows = set()
    for node, kind in _import_statements(parsed(path), Kind.MODULE):
        for name in _imported_names(node, package):
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name and name != module:
                arrows.add(Import(importer=module, imported=name, kind=kind, line=node.lineno))
    return arrows


def libraries(path: Path) -> set[str]:
    """The top-level packages that a file imports by their full name, late and for types too."""
    nodes = [node for node, _ in _import_statements(parsed(path), Kind.MODULE) if not getattr(node, "level", 0)]
    return {_package(name) for node in nodes for name in _imported_names(node, "")}


def _import_statements(node: ast.AST, kind: Kind) -> Iterator[tuple[ast.Import | ast.ImportFrom, Kind]]:
    typing_only = node.body if isinstance(node, ast.If) and ast.unparse(node.test) in TYPING_TESTS else []
    if isinstance(node, Function):
        kind = max(kind, Kind.LATE)
    for child in ast.iter_child_nodes(node):
        kind_here = Kind.TYPING if child in typing_only else kind
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, kind_here
        else:
            yield from _import_statements(child, kind_here)


def _imported_names(node: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    """The full dotted names of a statement, as in `package.module.name`."""
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
    return [".".join([*above, *filter(None, [node.module]), name.name]) for name in node.names]


def all_imports(root: Path, packages: Iterable[str] = PACKAGES) -> list[Import]:
    """Every arrow between the modules of these packages, in a fixed order."""
    known = modules(root, packages)
    arrows = {arrow for module, path in known.items() for arrow in imports(path, module, known)}
    return sorted(arrows, key=lambda arrow: (arrow.importer, arrow.line, arrow.imported))


def graph_of(arrows: Iterable[Import], up_to: Kind = Kind.TYPING) -> dict[str, set[str]]:
    """The arrows as a graph. `up_to`: the last kind of import that counts."""
    graph: dict[str, set[str]] = {}
    for arrow in arrows:
        if arrow.kind <= up_to:
            graph.setdefault(arrow.importer, set()).add(arrow.imported)
    return graph


def _below(graph: Graph) -> dict[str, set[str]]:
    """By module all that it imports, itself or through others. It holds the module itself if that is in a circle."""
    below: dict[str, set[str]] = {}
    for module in {*graph, *(target for targets in graph.values() for target in targets)}:
        seen, remaining = set[str](), [module]
        while remaining:
            new = set(graph.get(remaining.pop(), ())) - seen
            seen |= new
            remaining += new
        below[module] = seen
    return below


def circles(graph: Graph) -> list[tuple[str, ...]]:
    """The groups of modules that import each other in a circle."""
    below = _below(graph)
    return sorted({tuple(sorted(t for t in below[m] if m in below[t])) for m in below if m in below[m]})


def levels(graph: Graph) -> int:
    """How many modules the longest chain of imports has. A circle counts as one module."""
    below = _below(graph)

    @cache
    def height(module: str) -> int:
        return 1 + max((height(target) for target in below[module] if module not in below[target]), default=0)

    return max(map(height, below), default=0)


def room_of(module: str) -> str:
    """The direct child of muxfer/ that holds a module of it: a package or a module. `__init__` for muxfer itself."""
    return module.split(".")[1] if "." in module else "__init__"


def _figures_line(arrows: Sequence[Import], kind: Kind) -> str:
    """Figures of imports up to one kind: arrows and levels of muxfer/, circles over every package."""
    own = graph_of([one for one in arrows if _package(one.importer) == _package(one.imported) == "muxfer"], kind)
    rooms = [(room_of(a), room_of(b)) for a, below in own.items() for b in below if room_of(a) != room_of(b)]
    num_circles = len(circles(graph_of(arrows, kind)))
    return f"{kind.name:<18}{len(rooms):22}{len(set(rooms)):16}{levels(own):8}{num_circles:9}"


def _package(module: str) -> str:
    return module.partition(".")[0]


def num_lines(path: Path) -> int:
    return len(path.read_bytes().splitlines())


def num_code_lines(path: Path) -> int:
    """Lines without blank ones, comments, docstrings and imports: what a change of layout alone leaves the same."""
    skipped: set[int] = set()
    for node in ast.walk(parsed(path)):
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Expr(ast.Constant(str())):
                skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code = (line.strip() for number, line in enumerate(path.read_text().splitlines(), 1) if number not in skipped)
    return sum(bool(line) and not line.startswith("#") for line in code)


def long_files(root: Path, folders: Iterable[str] = FOLDERS, limit: int = MAX_FILE_LINES) -> list[Part]:
    """Files above the limit, the longest first."""
    every = [Part(path=str(file.relative_to(root)), num_lines=num_lines(file)) for file in files(root, folders)]
    return sorted((one for one in every if one.num_lines > limit), key=lambda one: (-one.num_lines, one.path))


def long_functions(root: Path, folders: Iterable[str] = FOLDERS, limit: int = MAX_FUNCTION_LINES) -> list[Part]:
    """Functions and methods above the limit, nested ones too, the longest first."""
    every = [_part(root, file, node) for file in files(root, folders) for node in functions(parsed(file))]
    return sorted((one for one in every if one.num_lines > limit), key=lambda one: (-one.num_lines, one.path))


def functions(node: ast.AST, *, nested: bool = True) -> Iterator[Function]:
    """Functions and methods below a node. `nested`: those inside functions too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield child
        if nested or not isinstance(child, Function):
            yield from functions(child, nested=nested)


def _part(root: Path, file: Path, node: Function) -> Part:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    height = (node.end_lineno or first) - first + 1
    return Part(path=str(file.relative_to(root)), name=node.name, line=first, num_lines=height)


def calls(node: ast.AST) -> set[str]:
    """The last names of what is called below a node: `f` of both `f()` and `module.f()`."""
    return {ast.unparse(one.func).rpartition(".")[2] for one in ast.walk(node) if isinstance(one, ast.Call)}


def drives(root: Path) -> list[Part]:
    """Copies of "drive a study": functions that open a ledger, take its lease and run the study, each by itself.

    A copy is a function or method that calls one of each step of DRIVING, itself or in a function nested in it. A
    module that defines one of these names is the place where driving belongs, so nothing in it is a copy.
    """
    copies: list[Part] = []
    for file in files(root):
        defined = {node.name for node in parsed(file).body if isinstance(node, Function | ast.ClassDef)}
        if not defined & set().union(*DRIVING):
            nodes = functions(parsed(file), nested=False)
            copies += [_part(root, file, node) for node in nodes if all(calls(node) & step for step in DRIVING)]
    return copies


def entries(root: Path) -> list[str]:
    """What `ls muxfer/` shows, but for Python's own cache."""
    return sorted(entry.name for entry in (root / "muxfer").iterdir() if entry.name != "__pycache__")


def package_sizes(root: Path) -> Counter[str]:
    """How many Python files each folder of muxfer/ holds itself."""
    return Counter(str(file.parent.relative_to(root)) for file in files(root, ["muxfer"]))


def text_of(root: Path) -> str:
    """The figures as plain text."""
    arrows = all_imports(root)
    listed: dict[str, Sequence[object]] = {
        "circles of imports of every kind": circles(graph_of(arrows)),
        f"files above {MAX_FILE_LINES} lines": long_files(root),
        f"functions above {MAX_FUNCTION_LINES} lines": long_functions(root),
        'copies of "drive a study"': drives(root),
    }
    lines = [
        f"muxfer/: {len(modules(root, ['muxfer']))} modules, {len(entries(root))} entries",
        f"lines: {_sums(root, num_lines)}",
        f"lines of code: {_sums(root, num_code_lines)}",
        "largest packages, in files: " + ", ".join(f"{name}/ {n}" for name, n in package_sizes(root).most_common(5)),
        f"\n{'imports up to':<18}{'arrows between rooms':>22}{'pairs of rooms':>16}{'levels':>8}{'circles':>9}",
        *(_figures_line(arrows, kind) for kind in Kind),
    ]
    lines += ["\n".join([f"\n{title}: {len(found)}", *(f"  {x}" for x in found)]) for title, found in listed.items()]
    return "\n".join(lines)


def _sums(root: Path, count: Callable[[Path], int]) -> str:
    return ", ".join(f"{name}/ {sum(map(count, files(root, [name]))):,}" for name in FOLDERS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structure", description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=ROOT)
    root = parser.parse_args().root
    if not (root / "muxfer").is_dir():
        parser.error(f"{root} has no folder muxfer: give the root of a checkout")
    print(text_of(root))
    return 0


if __name__ == "__main__":
    sys.exit(main())
