"""What a large corpus costs: memory of all processes together, seconds, and a kill half way.

python benchmarks/prepare_data.py --megabytes 2000

Makes a text of that size from Python's library, each paragraph changed a little, and prepares it
in a process of its own, whose memory and that of its children is read twice a second from /proc
(unique pages, so that shared libraries count once). With --kill the run is killed after a third of
its parts, and run again: the bytes must be those of the uninterrupted run.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

from foundation.demonstration import use_utf8
from training.corpus import load_corpus


def write_text(path: Path, megabytes: int) -> None:
    """Paragraphs of Python's library in any order, each with a number that no other has."""
    draw = random.Random(0)
    paragraphs = [p for d in load_corpus("python-docs+python-code") for p in d.text.split("\n\n")]
    size = 0
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        while size < megabytes * 10**6:
            chosen = draw.choices(paragraphs, k=1000)
            text = "".join(f"{p} {draw.randrange(10**6)}\n\n" for p in chosen)
            file.write(text)
            size += len(text.encode())


def unique_bytes(pid: int) -> int:
    """What a process and its children would give back if they ended."""
    total, waiting = 0, [pid]
    while waiting:
        process = waiting.pop()
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8")
            children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8")
        except OSError:
            continue  # it has just ended
        waiting += map(int, children.split())
        private = [line.split()[1] for line in rollup.splitlines() if line.startswith("Private_")]
        total += 1024 * sum(map(int, private))
    return total


def prepare(source: Path, out: Path, options: list[str], kill_at: int | None) -> tuple[float, int]:
    """Run the command; return seconds and peak bytes. Kill it when so many parts are finished."""
    words = [sys.executable, "-m", "fromzero", "data", "prepare", str(source), "--out", str(out)]
    start, peak = time.monotonic(), 0
    with subprocess.Popen([*words, *options], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, unique_bytes(process.pid))
            parts = list(out.with_name(f"{out.name}.parts").glob("part-*.safetensors"))
            if kill_at is not None and len(parts) >= kill_at:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.5)
    if process.returncode and kill_at is None:
        raise SystemExit(f"fromzero data prepare ended with {process.returncode}")
    return time.monotonic() - start, peak


def main() -> None:
    """Measure once, and once more with a kill."""
    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill", action="store_true", help="kill a run half way, run it again")
    arguments = parser.parse_args()
    if not Path("/proc/self/smaps_rollup").exists():
        raise SystemExit("memory is read from /proc, which this system does not have")
    options = ["--dedup", "--vocab-size", str(arguments.vocab_size)]
    options += ["--workers", str(arguments.workers)]
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name, "text.txt"), Path(name, "data")
        write_text(source, arguments.megabytes)
        size = source.stat().st_size / 1e6
        seconds, peak = prepare(source, out, options, None)
        print(f"{size:,.0f} MB, {arguments.workers} workers, {os.cpu_count()} cores")
        print(f"whole run       {seconds:6.0f} s  {size / seconds:5.1f} MB/s  {peak / 1e6:,.0f} MB")
        if arguments.kill:
            digests = [sha256((out / f).read_bytes()).digest() for f in ("train.bin", "val.bin")]
            again = Path(name, "again")
            first, _ = prepare(source, again, options, max(1, arguments.megabytes // 12))
            second, _ = prepare(source, again, options, None)
            same = digests == [
                sha256((again / f).read_bytes()).digest() for f in ("train.bin", "val.bin")
            ]
            print(f"killed after    {first:6.0f} s")
            print(f"the second run  {second:6.0f} s  the same bytes: {'yes' if same else 'NO'}")


if __name__ == "__main__":
    main()
