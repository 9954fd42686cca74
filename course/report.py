"""学到哪里了，有什么为证：终端里的一览、Markdown、一个不靠别处文件的 HTML。"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from course.catalogue import all_mistakes
from course.checkpoints import CHECKPOINTS, evidence_for
from course.exercise import Exercise, all_exercises
from course.lessons import lesson
from course.workspace import Workspace
from foundation.files import atomic_file

__all__ = ["markdown_report", "overview_lines", "write_report"]

BAR = 20  # characters of a progress bar
TEXT: dict[str, dict[str, Any]] = {
    "zh": {
        "title": "我的大模型课：进度与证据",
        "solved": "做完 {done} / {total} 题",
        "week": "第 {week} 周",
        "checkpoints": "打勾",
        "exercises": "练习",
        "columns": ("", "题", "标题", "试了几次", "提示", "做完于"),
        "mistakes": "犯过、认出来、改好了的错误",
        "none": "还没有",
        "times": "{count} 次",
        "gave_up": "看过答案，变体还没有做",
        "needs": "还差 {names}",
        "curve": "每天累计做完的题",
        "marks": "✓ 做完  ~ 看过答案  · 试过  空白 没开始  > 正在做",
    },
    "en": {
        "title": "My course: progress and evidence",
        "solved": "{done} of {total} exercises solved",
        "week": "Week {week}",
        "checkpoints": "Checkpoints",
        "exercises": "Exercises",
        "columns": ("", "exercise", "title", "attempts", "hints", "solved"),
        "mistakes": "Mistakes made, recognised and mended",
        "none": "none yet",
        "times": "{count} times",
        "gave_up": "saw the solution, the variant is still to do",
        "needs": "still to do: {names}",
        "curve": "exercises solved, day by day",
        "marks": "✓ solved  ~ saw the solution  · tried  blank untouched  > current",
    },
}


def mark_of(workspace: Workspace, exercise: Exercise) -> str:
    """✓ solved, ~ given up, · tried, blank untouched."""
    record = workspace.record(exercise)
    if workspace.solved(exercise):
        return "✓"
    return "~" if record["gave_up"] else "·" if record["attempts"] else " "


def solved_exercises(workspace: Workspace) -> list[Exercise]:
    """What is solved."""
    return [e for e in all_exercises().values() if workspace.solved(e)]


def overview_lines(workspace: Workspace) -> list[str]:
    """The course at a glance, for the terminal."""
    text, known = TEXT[workspace.language], all_exercises()
    done = len(solved_exercises(workspace))
    lines = [text["solved"].format(done=done, total=len(known)), str(text["marks"])]
    week = 0
    for exercise in known.values():
        if exercise.week != week:
            week = exercise.week
            group = [e for e in known.values() if e.week == week]
            solved = sum(workspace.solved(e) for e in group)
            filled = round(BAR * solved / len(group))
            head = text["week"].format(week=week)
            lines += ["", f"{head}  {'█' * filled}{'░' * (BAR - filled)} {solved}/{len(group)}"]
        here = ">" if exercise.id == workspace.current.id else " "
        title = lesson(exercise, workspace.language).title
        lines.append(f"{here} {mark_of(workspace, exercise)} {exercise.id:<17} {title}")
    return lines


def markdown_report(workspace: Workspace) -> str:
    """The report as Markdown."""
    text, language = TEXT[workspace.language], workspace.language
    known = all_exercises()
    done = len(solved_exercises(workspace))
    lines = [f"# {text['title']}", "", text["solved"].format(done=done, total=len(known)), ""]
    lines += [f"## {text['checkpoints']}", ""]
    for checkpoint in CHECKPOINTS:
        wanted = evidence_for(checkpoint)
        missing = [e.id for e in wanted if not workspace.solved(e)]
        box = "x" if wanted and not missing else " "
        said = checkpoint.zh if language == "zh" else checkpoint.en
        proof = ", ".join(e.id for e in wanted)
        if missing:
            proof = text["needs"].format(names=", ".join(missing))
        lines.append(f"- [{box}] {said} ({proof or text['none']})")
    columns = text["columns"]
    lines += ["", f"## {text['exercises']}", "", "| " + " | ".join(columns) + " |"]
    lines.append("|" + "---|" * len(columns))
    for exercise in known.values():
        record = workspace.record(exercise)
        when = record["passed"][:10] if workspace.solved(exercise) else ""
        if record["gave_up"] and not when:
            when = text["gave_up"]
        cells = (
            mark_of(workspace, exercise), exercise.id, lesson(exercise, language).title,
            str(len(record["attempts"]) or ""), str(record["hints"] or ""), when,
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"## {text['mistakes']}", ""]
    counted = mended_mistakes(workspace)
    for name, count in counted.most_common():
        words = all_mistakes()[name].words[language]
        times = text["times"].format(count=count)
        lines.append(f"- {name} {words.name} ({times})")
    if not counted:
        lines.append(str(text["none"]))
    return "\n".join(lines) + "\n"


def mended_mistakes(workspace: Workspace) -> Counter[str]:
    """The mistakes recognised in exercises that are solved by now."""
    counted: Counter[str] = Counter()
    for exercise in solved_exercises(workspace):
        for attempt in workspace.record(exercise)["attempts"]:
            counted.update(name for name in attempt["mistakes"] if name in all_mistakes())
    return counted


def write_report(workspace: Workspace, folder: Path) -> list[Path]:
    """Write report.md and report.html; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page = markdown_report(workspace)
    written = []
    for name, content in (("report.md", page), ("report.html", html_report(workspace, page))):
        with atomic_file(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
        written.append(folder / name)
    return written


# ---- HTML: one file, no script, no picture from elsewhere ----

STYLE = """
body{font:16px/1.6 system-ui,"Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif;
max-width:56rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ddd;padding:.25rem .5rem;
text-align:left}h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}li{list-style:none}
.yes{color:#0a7d33}.no{color:#888}svg{width:100%;height:auto}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#16181c}td,th{border-color:#333}}
"""


def html_report(workspace: Workspace, page: str) -> str:
    """The Markdown report as one HTML file, with the bars of the weeks and the curve of days."""
    title = html.escape(str(TEXT[workspace.language]["title"]))
    body = "\n".join(html_lines(page.splitlines()))
    charts = week_chart(workspace) + day_chart(workspace)
    head, _, rest = body.partition("</h1>")
    return (
        f'<!doctype html>\n<html lang="{workspace.language}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>{head}</h1>\n"
        f"{charts}\n{rest}\n</body></html>\n"
    )


def html_lines(lines: Iterable[str]) -> Iterable[str]:
    """Headings, boxes and the one table of the report."""
    table = False
    for line in lines:
        if line.startswith("|"):
            cells = [html.escape(cell.strip()) for cell in line.strip("|").split("|")]
            if not table:
                yield "<table><tr>" + "".join(f"<th>{c}</th>" for c in cells) + "</tr>"
                table = True
            elif set(line) - set("|-"):
                yield "<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"
            continue
        if table:
            yield "</table>"
            table = False
        if line.startswith("#"):
            level = len(line) - len(line.lstrip("#"))
            yield f"<h{level}>{html.escape(line[level:].strip())}</h{level}>"
        elif line.startswith("- [x] "):
            yield f'<li class="yes">☑ {html.escape(line[6:])}</li>'
        elif line.startswith("- [ ] "):
            yield f'<li class="no">☐ {html.escape(line[6:])}</li>'
        elif line.startswith("- "):
            yield f"<li>{html.escape(line[2:])}</li>"
        elif line:
            yield f"<p>{html.escape(line)}</p>"
    if table:
        yield "</table>"


def week_chart(workspace: Workspace) -> str:
    """A bar for every week."""
    known, text = all_exercises().values(), TEXT[workspace.language]
    weeks = sorted({exercise.week for exercise in known})
    rows = []
    for row, week in enumerate(weeks):
        group = [exercise for exercise in known if exercise.week == week]
        solved = sum(workspace.solved(exercise) for exercise in group)
        y, width = 24 * row, 480 * solved / len(group)
        label = html.escape(text["week"].format(week=week))
        rows.append(
            f'<text x="0" y="{y + 15}" fill="currentColor">{label}</text>'
            f'<rect x="90" y="{y + 2}" width="480" height="16" rx="3" fill="#8884"/>'
            f'<rect x="90" y="{y + 2}" width="{width:.0f}" height="16" rx="3" fill="#2f9e5b"/>'
            f'<text x="580" y="{y + 15}" fill="currentColor">{solved}/{len(group)}</text>'
        )
    return (
        f'<svg viewBox="0 0 640 {24 * len(weeks)}" font-size="13" role="img">'
        + "".join(rows)
        + "</svg>"
    )


def day_chart(workspace: Workspace) -> str:
    """How many exercises were solved up to each day that had any."""
    days = Counter(workspace.record(e)["passed"][:10] for e in solved_exercises(workspace))
    if len(days) < 2:
        return ""
    total, points = 0, []
    most = sum(days.values())
    for number, day in enumerate(sorted(days)):
        total += days[day]
        x = 20 + 600 * number / (len(days) - 1)
        points.append(f"{x:.0f},{110 - 90 * total / most:.0f}")
    label = html.escape(str(TEXT[workspace.language]["curve"]))
    first, last = min(days), max(days)
    return (
        f'<svg viewBox="0 0 640 140" font-size="12" role="img" aria-label="{label}">'
        f'<polyline points="{" ".join(points)}" fill="none" stroke="#2f6fde" stroke-width="2"/>'
        f'<text x="20" y="132" fill="currentColor">{first}</text>'
        f'<text x="560" y="132" fill="currentColor">{last}</text>'
        f'<text x="20" y="14" fill="currentColor">{label}: {most}</text></svg>'
    )
