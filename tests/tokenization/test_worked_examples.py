"""Every example in a docstring of this floor gives what it says."""

import doctest
import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "tokenization"
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
WITH_EXAMPLES = [
    name for name in MODULES if ">>> " in (FOLDER / f"{name}.py").read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_worked_examples(name):
    module = importlib.import_module(f"tokenization.{name}")
    failed, attempted = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0
    assert attempted > 0


def test_examples_are_found():
    assert len(WITH_EXAMPLES) >= 6
