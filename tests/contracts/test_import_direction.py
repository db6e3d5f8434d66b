"""workflows → cascade_ops ← serve, and the CLI imports nothing heavy to say what it can do."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEVER_IN_CORE = {"ray", "typer", "rich", "pydantic", "workflows", "serve"}
HEAVY = {"torch", "transformers", "ray", "peft", "deepspeed", "numpy", "scipy", "pandas"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs on import. An ``if TYPE_CHECKING:`` body does not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from outside_functions(node)


@pytest.mark.parametrize("path", sources("cascade_ops"), ids=lambda path: str(path.relative_to(ROOT)))
def test_core_stays_pure(path: Path) -> None:
    wrong = imported(ast.walk(ast.parse(path.read_text()))) & NEVER_IN_CORE
    assert not wrong, f"{path} imports {sorted(wrong)}"


@pytest.mark.parametrize(("package", "other"), [("workflows", "serve"), ("serve", "workflows")])
def test_workflows_and_serve_do_not_know_each_other(package: str, other: str) -> None:
    for path in sources(package):
        tree = ast.parse(path.read_text())
        is_composition_root = path.is_relative_to(ROOT / "workflows" / "cli")
        nodes = outside_functions(tree) if is_composition_root else ast.walk(tree)
        assert other not in imported(nodes), f"{path} imports {other}"


def test_cli_modules_import_heavy_things_inside_commands() -> None:
    for path in sources("workflows/cli"):
        wrong = imported(outside_functions(ast.parse(path.read_text()))) & (HEAVY | {"cascade_ops"})
        assert not wrong, f"{path} imports {sorted(wrong)} at the top"


def test_help_answers_within_a_second_and_without_torch() -> None:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        answer = subprocess.run(
            [sys.executable, "-m", "workflows.cli", "--help"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
        seconds.append(time.perf_counter() - began)
    assert "compress" in answer.stdout
    assert min(seconds) < 1.0, f"cascade --help took {min(seconds):.2f} s"
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, workflows.cli; print(*sys.modules)"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout.split()
    assert not HEAVY & set(loaded)
