"""Searches muxfer's own sources for anything that could run the content of a file."""

import ast
from pathlib import Path

from benchmarks.faults.harness.settings import ROOT

BANNED_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "instantiate", "read_pickle", "unsafe_load", "full_load"}
BANNED_ATTRIBUTES = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("yaml", "load"), ("mlflow", "pyfunc")}
BANNED_KEYWORDS = {"allow_pickle", "weights_only"}


def assert_sources_run_no_files() -> None:
    """No module of muxfer or proxy_models imports or calls what runs a file's content.

    `.eval()` of a torch module is allowed: it runs no text.
    """
    for file in (*(ROOT / "muxfer").rglob("*.py"), *(ROOT / "proxy_models").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            _assert_harmless(node, file)


def _assert_harmless(node: ast.AST, file: Path) -> None:
    where = f"{file.relative_to(ROOT)}, line {getattr(node, 'lineno', 0)}"
    names = [alias.name for alias in getattr(node, "names", ()) if isinstance(alias, ast.alias)]
    names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
    assert not BANNED_MODULES & {name.split(".")[0] for name in names}, f"{where} imports {names}"
    if isinstance(node, ast.Name | ast.alias):
        name = node.id if isinstance(node, ast.Name) else node.name
        assert name not in BANNED_CALLS, f"{where} uses {name}"
    if isinstance(node, ast.Attribute):
        base = node.value.id if isinstance(node.value, ast.Name) else ""
        assert (base, node.attr) not in BANNED_ATTRIBUTES, f"{where} uses {base}.{node.attr}"
        assert node.attr not in BANNED_CALLS - {"eval", "compile"}, f"{where} uses .{node.attr}"
        assert node.attr != "compile" or base in ("re", "torch"), f"{where} uses .compile"
    if isinstance(node, ast.keyword):
        assert node.arg not in BANNED_KEYWORDS, f"{where} uses {node.arg}"
