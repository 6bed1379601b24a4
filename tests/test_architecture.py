"""Who may import whom, who owns a heavy library, and how large a part may grow, over the whole tree.

Each check returns the violations of a root, one line each. The tests at the end build small trees with one fault and
see that its check reports it.
"""

import subprocess
import sys
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

import pytest

from benchmarks import structure
from tests.typed import ROOT

ROOMS = (
    "__init__", "errors", "validate", "trial", "redaction", "files", "processes", "garbage",
    "config", "analysis", "data", "mup", "training", "models", "evaluation", "executors", "ledger",
    "report", "study", "transfer", "commands", "invoke", "cli", "__main__",
)  # fmt: skip
"""The rooms of muxfer/ from the ground floor upward: its packages and its single modules.

A module imports from its own room and from the rooms before it. A room's place here is its rank.
"""
RANKS = {room: rank for rank, room in enumerate(("proxy_models", *ROOMS, "benchmarks"))}
OWNERS = {
    "ray": ["*/ray_*.py"],
    "mlflow": ["*/mlflow_*.py"],
    "hydra": ["*/hydra_*.py"],
    "omegaconf": ["*/hydra_*.py"],
    "diffusers": ["*/diffusers_*.py"],
    "optuna": ["*/optuna_*.py"],
    "matplotlib": ["report/figures/*.py"],
    "jinja2": ["report/html.py"],
    "rich": ["report/terminal.py", "study/progress.py"],
    "sklearn": ["analysis/scattered.py", "data/digits.py"],
    "scipy": ["analysis/*.py", "analysis/laws/*.py"],
    "click": ["cli.py", "invoke.py"],
}
"""By heavy library, the files of muxfer/ that may import it."""
BY_STRING = {
    "models/plugins.py": "imports the modules that the user's own command line names",
    "models/families.py": "imports a registered class by its dotted name",
    "executors/attempt.py": "a job names the run of its trial, for a process that was started elsewhere",
}
"""The files of muxfer/ that may import a module by a string, each with its reason."""
MAX_ENTRIES = 25
MAX_PACKAGE_FILES = 15
UNLIMITED = {"muxfer/commands"}


def unranked(root: Path) -> list[str]:
    rooms = {structure.room_of(module) for module in structure.modules(root, ["muxfer"])}
    return [f"muxfer/{room} has no rank: add it to ROOMS, above every room it imports" for room in rooms - set(ROOMS)]


def upward(root: Path) -> list[str]:
    """Imports of every kind that go to a higher room. Those of a room without a rank are left to `unranked`."""
    found = []
    for arrow in structure.all_imports(root):
        above, below = place_of(arrow.importer), place_of(arrow.imported)
        if above != below and {above, below} <= set(RANKS) and RANKS[above] < RANKS[below]:
            found.append(
                f"{arrow.importer} ({above}, rank {RANKS[above]}) imports {arrow.imported} ({below}, rank"
                f" {RANKS[below]}) in line {arrow.line}: imports go down only; move what is needed to a lower room, or"
                " let the caller pass it in"
            )
    return found


def place_of(module: str) -> str:
    package = module.partition(".")[0]
    return structure.room_of(module) if package == "muxfer" else package


def circular(root: Path) -> list[str]:
    """Circles of imports of every kind: a late one and one for types close a circle too."""
    graph = structure.graph_of(structure.all_imports(root))
    return [
        f"{' and '.join(circle)} import each other: move what they share to a module below them"
        for circle in structure.circles(graph)
    ]


def outside_its_owner(root: Path, library: str) -> list[str]:
    return [
        f"muxfer/{path} imports {library}, which only {' and '.join(OWNERS[library])} may: call a function there"
        for path, file in own_files(root)
        if library in structure.libraries(file) and not any(fnmatch(path, owner) for owner in OWNERS[library])
    ]


def imported_by_string(root: Path, allowed: Collection[str]) -> list[str]:
    """Files that import by a string without being registered, and registered ones that no longer do."""
    names = {"import_module", "__import__"}
    found = {path for path, file in own_files(root) if structure.calls(structure.parsed(file)) & names}
    new = [f"muxfer/{path} imports by a string: write a function that imports by name" for path in found - {*allowed}]
    return new + [f"muxfer/{path} imports nothing by a string: take it out of BY_STRING" for path in {*allowed} - found]


def own_files(root: Path) -> list[tuple[str, Path]]:
    return [(str(file.relative_to(root / "muxfer")), file) for file in structure.files(root, ["muxfer"])]


def crowded(root: Path) -> list[str]:
    found = [
        f"{package}/ has {count} Python files, at most {MAX_PACKAGE_FILES} are allowed: split it by concern"
        for package, count in structure.package_sizes(root).items()
        if count > MAX_PACKAGE_FILES and package not in UNLIMITED
    ]
    if (count := len(structure.entries(root))) > MAX_ENTRIES:
        found.append(f"muxfer/ has {count} entries, at most {MAX_ENTRIES} are allowed: move some into a package")
    return found


def too_long(root: Path) -> list[str]:
    """Files of the tests count too, their functions do not."""
    limits = f"a file has at most {structure.MAX_FILE_LINES}, a function at most {structure.MAX_FUNCTION_LINES}"
    parts = structure.long_files(root) + structure.long_functions(root, structure.PACKAGES)
    return [f"{part}: {limits}; split it" for part in parts]


def assert_none(violations: list[str]) -> None:
    """Each violation on a line of its own: pytest shortens a list."""
    assert not violations, "\n".join(["", *sorted(violations)])


def test_every_room_has_one_rank():
    assert_none(unranked(ROOT))
    assert len(set(ROOMS)) == len(ROOMS)


def test_imports_go_down_the_ranks_only():
    assert_none(upward(ROOT))


def test_no_modules_import_each_other_in_a_circle():
    assert_none(circular(ROOT))


@pytest.mark.parametrize("library", OWNERS)
def test_a_heavy_library_is_imported_by_its_owner_only(library):
    assert_none(outside_its_owner(ROOT, library))


def test_only_registered_files_import_by_a_string():
    assert_none(imported_by_string(ROOT, BY_STRING))


def test_packages_stay_small():
    assert_none(crowded(ROOT))


def test_files_and_functions_stay_short():
    assert_none(too_long(ROOT))


def test_the_models_never_import_muxfer():
    importers = [path for path in structure.files(ROOT, ["proxy_models"]) if "muxfer" in structure.libraries(path)]
    assert not importers


def loaded(modules: Collection[str], names: Collection[str]) -> str:
    """Those of the names that are loaded after a fresh interpreter has imported the modules."""
    code = f"import sys, {', '.join(modules)}; print(*[name for name in {list(names)} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


def test_training_and_models_load_torch_alone_of_the_heavy_libraries():
    packages = ("muxfer.training", "muxfer.mup", "proxy_models")
    every = [module for module in structure.modules(ROOT) if module.startswith(packages)]
    heavy = ["ray", "mlflow", "optuna", "hydra", "omegaconf", "diffusers", "pandas", "matplotlib", "sklearn"]
    assert set(packages) <= set(every)
    assert loaded(every, heavy) == ""


LIGHT = {
    "cli": ("torch", "ray", "mlflow", "hydra", "numpy", "rich", "pandas"),  # for its help
    "report": ("matplotlib", "pandas", "torch"),
    "report.terminal": ("rich",),
    **dict.fromkeys(("models.plugins", "executors.base", "commands.sweep", "commands.status"), ("torch",)),
}
"""By module, libraries that it must not load: torch takes 2 to 3 s, which a sweep with nothing to run must not pay."""


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_loads_no_heavy_library(module):
    assert loaded([f"muxfer.{module}"], LIGHT[module]) == ""


def tree(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def function(num_lines: int) -> str:
    return "def f():\n" + "    f()\n" * (num_lines - 1)


def test_an_upward_import_is_reported(tmp_path):
    root = tree(tmp_path, {"muxfer/errors.py": "\nfrom muxfer.cli import main\n", "muxfer/cli.py": "main = 1\n"})
    [line] = upward(root)
    errors, cli = RANKS["errors"], RANKS["cli"]
    assert line.startswith(f"muxfer.errors (errors, rank {errors}) imports muxfer.cli (cli, rank {cli}) in line 2: ")
    assert not circular(root)


@pytest.mark.parametrize(
    ("importer", "imported"), [("proxy_models/dit.py", "muxfer.trial"), ("muxfer/study/loop.py", "benchmarks.timing")]
)
def test_an_upward_import_of_another_package_is_reported(importer, imported, tmp_path):
    target = f"{imported.replace('.', '/')}.py"
    assert len(upward(tree(tmp_path, {importer: f"def f():\n    import {imported}\n", target: ""}))) == 1


@pytest.mark.parametrize(
    "back",
    [
        "from muxfer.ledger import spool\n",
        "from .spool import Spool\n",
        "def write():\n    from muxfer.ledger.spool import Spool\n",
        "class Writer:\n    async def write(self):\n        import muxfer.ledger.spool\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from muxfer.ledger.spool import Spool\n",
    ],
    ids=["absolute", "relative", "late", "late in a method", "for types"],
)
def test_a_circle_is_reported(back, tmp_path):
    files = {"muxfer/ledger/spool.py": "from muxfer.ledger.writer import Writer\n", "muxfer/ledger/writer.py": back}
    [line] = circular(tree(tmp_path, files))
    assert line.startswith("muxfer.ledger.spool and muxfer.ledger.writer import each other")


def test_a_circle_through_three_packages_is_reported(tmp_path):
    files = {
        "muxfer/study/loop.py": "from benchmarks.load import fill\n",
        "benchmarks/load.py": "import proxy_models\n",
        "proxy_models/__init__.py": "def build():\n    from muxfer.study.loop import run\n",
    }
    [line] = circular(tree(tmp_path, files))
    assert "benchmarks.load and muxfer.study.loop and proxy_models" in line


def test_an_import_for_types_alone_has_its_own_kind(tmp_path):
    text = "import muxfer.a\nif TYPE_CHECKING:\n    import muxfer.b\nelse:\n    import muxfer.c\n"
    files = {"muxfer/d.py": text, "muxfer/a.py": "", "muxfer/b.py": "", "muxfer/c.py": ""}
    kinds = {one.imported: one.kind.name for one in structure.all_imports(tree(tmp_path, files))}
    assert kinds == {"muxfer.a": "MODULE", "muxfer.b": "TYPING", "muxfer.c": "MODULE"}


def test_a_room_without_a_rank_is_reported(tmp_path):
    [line] = unranked(tree(tmp_path, {"muxfer/helpers/text.py": "", "muxfer/study/loop.py": ""}))
    assert line.startswith("muxfer/helpers has no rank")


@pytest.mark.parametrize(("path", "num_reported"), [("muxfer/study/loop.py", 1), ("muxfer/executors/ray_tune.py", 0)])
def test_a_library_outside_its_owner_is_reported(path, num_reported, tmp_path):
    root = tree(tmp_path, {path: "def f():\n    from ray import tune\n"})
    assert len(outside_its_owner(root, "ray")) == num_reported


@pytest.mark.parametrize("call", ["importlib.import_module(name)", "import_module(name)", "__import__(name)"])
def test_an_import_by_a_string_is_reported(call, tmp_path):
    root = tree(tmp_path, {"muxfer/cli.py": f"def f(name):\n    return {call}\n"})
    assert len(imported_by_string(root, {})) == 1
    assert not imported_by_string(root, {"cli.py"})


def test_a_registered_file_that_imports_nothing_by_a_string_is_reported(tmp_path):
    assert len(imported_by_string(tree(tmp_path, {"muxfer/cli.py": ""}), {"cli.py"})) == 1


@pytest.mark.parametrize("folder", structure.FOLDERS)
def test_a_file_above_the_limit_is_reported(folder, tmp_path):
    files = {f"{folder}/long.py": "x = 1\n" * 351, f"{folder}/full.py": "x = 1\n" * 350}
    [line] = too_long(tree(tmp_path, files))
    assert line.startswith(f"{folder}/long.py, 351 lines: ")


@pytest.mark.parametrize("folder", structure.PACKAGES)
@pytest.mark.parametrize("text", [function(61), f"@cache\n{function(60)}"], ids=["plain", "decorated"])
def test_a_function_above_the_limit_is_reported(text, folder, tmp_path):
    files = {f"{folder}/long.py": text, f"{folder}/full.py": function(60), "tests/test_long.py": text}
    [line] = too_long(tree(tmp_path, files))
    assert line.startswith(f"{folder}/long.py:1 f, 61 lines: ")


@pytest.mark.parametrize(("package", "num_reported"), [("study", 1), ("commands", 0), ("report/figures", 1)])
def test_a_package_with_too_many_files_is_reported(package, num_reported, tmp_path):
    root = tree(tmp_path, {f"muxfer/{package}/part_{number}.py": "" for number in range(15)})
    assert not crowded(root)
    assert len(crowded(tree(root, {f"muxfer/{package}/one_more.py": ""}))) == num_reported


def test_too_many_entries_are_reported(tmp_path):
    root = tree(tmp_path, {f"muxfer/room_{number}/__init__.py": "" for number in range(25)})
    assert not crowded(tree(root, {"muxfer/__pycache__/x.pyc": ""}))
    [line] = crowded(tree(root, {"muxfer/py.typed": ""}))
    assert line.startswith("muxfer/ has 26 entries")
