"""The recorded session of docs/course*.md: replayed, every line must come out again."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from fromzero.main import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"zh": ROOT / "docs" / "course.md", "en": ROOT / "docs" / "course.en.md"}


def recording(page):
    """The fenced block that holds the session."""
    blocks = re.findall(r"````text\n(\$ fromzero learn .*?)````", page, flags=re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


def replay(session):
    """Do what the session's `$` lines say, in the current folder; the session as it then reads.

    `$ edit FILE` is followed by one line taken away and those put in its place.
    """
    written = []
    lines = session.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("$ edit "):
            written.append(line)
            change = []
            for following in lines[number + 1 :]:
                if not following.startswith(("- ", "+ ")):
                    break
                change.append(following)
            written += [*change, ""]
            edit(Path(line.removeprefix("$ edit ")), change)
        elif line.startswith("$ fromzero "):
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                main(line.split()[2:])
            written += [line, out.getvalue().rstrip("\n"), ""]
    return "\n".join(written).rstrip("\n") + "\n"


def edit(path, change):
    text = path.read_text(encoding="utf-8")
    old, *new = [line[2:] for line in change]
    assert text.count(old + "\n") == 1, (path, old)
    path.write_text(text.replace(old + "\n", "\n".join(new) + "\n"), encoding="utf-8")


@pytest.mark.parametrize("language", PAGES)
def test_the_recorded_session_is_what_happens(language, tmp_path, monkeypatch):
    session = recording(PAGES[language].read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    assert replay(session).splitlines() == session.splitlines()
    assert session.count("✓") == 3  # three exercises
    assert session.count("✗") == 2  # two wrong attempts


def test_a_changed_number_would_be_noticed(tmp_path, monkeypatch):
    session = recording(PAGES["en"].read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    first = session[: session.index("$ fromzero learn hint")]
    assert replay(first).splitlines() == first.rstrip("\n").splitlines()
    assert replay_again(first, tmp_path).splitlines() != first.replace("2 times", "3 times")


def replay_again(session, folder):
    import shutil

    shutil.rmtree(folder / "my_llm")
    return replay(session)
