import subprocess
import sys

import pytest

from foundation.demonstration import new_figure, save_figure

SCRIPT = '''"""一课的标题。"""
from foundation.demonstration import new_figure, run_demo, save_figure
import torch
def plot(path):
    figure, axes = new_figure()
    axes.plot([1, 2])
    save_figure(figure, path)
run_demo(lambda: print("√ 未来", torch.rand(1).item()), plot)
'''


def run(tmp_path, *arguments):
    script = tmp_path / "lesson.py"
    script.write_text(SCRIPT, encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**__import__("os").environ, "PYTHONIOENCODING": "gbk"},
        check=False,
    )


def test_a_lesson_prints_utf8_on_any_console_deterministically_and_plots(tmp_path):
    first, second = run(tmp_path), run(tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("√ 未来 0.")
    assert first.stdout == second.stdout
    drawn = run(tmp_path, "--plot", str(tmp_path / "new" / "p.png"))
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "new" / "p.png").read_bytes().startswith(b"\x89PNG")
    refused = run(tmp_path, "--plot", str(tmp_path / "p.txt"))
    assert refused.returncode == 2
    assert "p.txt: the ending must be one of" in refused.stderr


def test_figures_need_no_display_and_refuse_unknown_endings(tmp_path):
    figure, axes = new_figure(1, 2)
    assert len(axes) == 2
    with pytest.raises(ValueError, match="cannot draw to"):
        save_figure(figure, tmp_path / "x.doc")
