"""`fromzero doctor`：这台机器装得全吗，算得对吗，能训练什么。"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluation.throughput import Workload

MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}
PLAIN_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
COLORS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Check this machine: green, yellow or red per line; the exit code is 1 if anything is red.

    Verifies what the devices compute against float64, tries torch.compile in a child process
    (most of the time of this command goes there), and trains for a moment to tell how long a
    first model takes here.

    Examples:
        fromzero doctor
        fromzero doctor --no-compile --no-speed    (two seconds)
    """

    compile: bool = True
    """try torch.compile; it starts a C++ compiler and takes 10 to 30 seconds"""
    compile_limit: float = 30.0
    """give up on torch.compile after this many seconds"""
    speed: bool = True
    """train for a few seconds to estimate minutes"""
    folder: Path = Path(".")
    """the folder where runs will be saved"""


def run(options: Options) -> int:
    """Print every finding as it comes; 1 if one is red."""
    from rich.console import Console
    from rich.text import Text

    from evaluation.checkup import examine
    from foundation.checks import check_float

    check_float("compile_limit", options.compile_limit, exclusive_minimum=0.0)
    console = Console(highlight=False, soft_wrap=True)
    marks = MARKS if can_print("".join(MARKS.values())) else PLAIN_MARKS
    counts: Counter[str] = Counter()
    findings = examine(
        options.folder,
        workloads() if options.speed else (),
        compile_limit=options.compile_limit if options.compile else None,
    )
    for finding in findings:
        counts[finding.status] += 1
        console.print(
            Text(marks[finding.status], style=COLORS[finding.status]),
            Text(f"{finding.name:<16}"),
            Text(finding.detail),
        )
        if finding.advice:
            console.print(Text(f"{'':<{len(marks['ok']) + 18}}-> {finding.advice}"))
    total = f"{counts['ok']} right, {counts['warn']} to know about, {counts['fail']} wrong"
    console.print(Text(f"{total}: {'NOT ready' if counts['fail'] else 'ready'}"))
    return 1 if counts["fail"] else 0


def can_print(text: str) -> bool:
    """Can stdout's encoding write this?"""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def workloads() -> list[Workload]:
    """What a beginner trains first, and what comes next."""
    from evaluation.throughput import Workload
    from gpt_model.config import preset

    # nanoGPT's recipe for a CPU: 2,000 steps of 12 texts of 64 characters
    shakespeare = preset("gpt-micro", vocab_size=65, max_seq_len=64)
    return [
        Workload("gpt-micro", preset("gpt-micro"), 4_000_000, 8, 256),
        Workload("tinyshakespeare", shakespeare, 2000 * 12 * 64, 12, 64),
        Workload("gpt-mini", preset("gpt-mini"), 4_000_000, 2, 256),
    ]
