"""Imports run one way: main_*.py -> report -> methods -> model -> dataloader -> utils."""

import ast
from pathlib import Path

ROOMS = ["utils", "dataloader", "model", "methods", "report"]  # each may import those before it, and itself
TWINS = {"main_real_phase1": "main_phase1", "main_real_phase2": "main_phase2", "main_real_baseline": "main_baseline"}
TWINS |= {"main_small_loss": "main_baseline"}  # the same script with other default settings


def imported(source):
    """Top-level names of what a module imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module.split(".")[0]


def wrong_way(room, names):
    """Those of the imported names that `room` must not import."""
    return {n for n in names if n.startswith("main_") or (n in ROOMS and ROOMS.index(n) > ROOMS.index(room))}


def test_rooms_import_one_way():
    for room in ROOMS:
        files = sorted(Path(room).rglob("*.py"))
        assert files
        for path in files:
            assert not wrong_way(room, imported(path.read_text())), path


def test_scripts_share_only_through_the_rooms():
    for path in Path().glob("main_*.py"):
        scripts = {name for name in imported(path.read_text()) if name.startswith("main_")}
        assert scripts <= {TWINS.get(path.stem)}, path
    assert all(len(Path(f"{twin}.py").read_text().splitlines()) <= 25 for twin in TWINS)


def test_an_import_the_wrong_way_is_seen():
    code = "import numpy\ndef f():\n    from methods.losses import cross_entropy\nfrom utils.config import pick\n"
    assert wrong_way("model", imported(code)) == {"methods"} and not wrong_way("report", imported(code))
    assert wrong_way("methods", imported("import main_phase1")) == {"main_phase1"}
