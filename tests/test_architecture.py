"""Who may import whom: downwards only, and the training code without any of the heavy libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = {
    "errors": 0, "environment": 0, "processes": 0, "form": 0,
    "trial": 0, "models": 0, "task": 0, "config": 0, "parse": 0,
    "mup": 1, "training": 1,
    "cost": 2, "search": 2, "plan": 2, "analysis": 2, "transfer": 2, "isoflop": 2,
    "plugins": 3, "families": 3, "worker": 3, "coordinates": 3, "ledger": 3, "lease": 3, "inline": 3, "progress": 3,
    "guard": 3, "retention": 3,
    "tables": 3, "figures": 3, "page": 3, "sections": 3, "answer": 3, "report": 3,
    "study": 4, "adapters": 4,
    "request": 5, "proposal": 5, "recorded": 5, "commands": 5, "status": 5, "doctor": 5,
    "launch": 5, "describe": 5, "check": 5, "export": 5,
    "table_verdict": 5, "fit": 5,
    "budget": 5, "budget_text": 5,
    "sizing": 5, "target_text": 5, "cli": 5, "__init__": 5, "__main__": 5,
}  # fmt: skip
OWNERS = {
    "ray": "adapters/ray_",
    "mlflow": "adapters/mlflow_",
    "hydra": "adapters/hydra_",
    "omegaconf": "adapters/hydra_",
    "diffusers": "adapters/diffusers_",
    "optuna": "adapters/optuna_",
    "pandas": "adapters/pandas_",
    "click": "cli",
}
"""A heavy library is imported by its adapter alone (by `commands`, `cli` never)."""


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names} | {node.module}
    return found


def modules() -> list[Path]:
    return sorted((ROOT / "muxfer").rglob("*.py"))


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_downwards_only(file):
    place = file.relative_to(ROOT / "muxfer").parts[0].removesuffix(".py")
    for name in imports(file):
        parts = name.split(".")
        if parts[0] != "muxfer" or len(parts) < 2 or parts[1] not in LEVELS or parts[1] == place:
            continue
        below = LEVELS[parts[1]] < LEVELS[place]
        together = LEVELS[parts[1]] == LEVELS[place] and place not in ("mup", "training", "adapters", "study")
        assert below or together, f"{place} (level {LEVELS[place]}) imports {parts[1]} (level {LEVELS[parts[1]]})"


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_heavy_library_has_one_owner(file):
    place = str(file.relative_to(ROOT / "muxfer"))
    for name in {name.split(".")[0] for name in imports(file)} & set(OWNERS):
        assert place.startswith(OWNERS[name]), f"{place} imports {name}, which belongs to {OWNERS[name]}"


def test_the_models_never_import_muxfer():
    for file in (ROOT / "proxy_models").glob("*.py"):
        assert not [name for name in imports(file) if name.split(".")[0] == "muxfer"], file


@pytest.mark.parametrize("module", ["muxfer.training", "muxfer.training.loop", "muxfer.mup", "proxy_models.dit"])
def test_training_needs_torch_alone(module):
    heavy = ["ray", "mlflow", "optuna", "hydra", "diffusers", "pandas", "matplotlib", "sklearn"]
    code = f"import {module}, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_help_imports_nothing_heavy():
    code = (
        "import sys; import muxfer.cli; "
        "print([name for name in ('torch', 'ray', 'mlflow', 'hydra', 'numpy', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
