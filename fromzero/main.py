"""`fromzero 命令 …`：找到命令的文件，读懂选项，把错误说成一行。

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import importlib
import io
import keyword
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from foundation.checks import nearest
from foundation.demonstration import use_utf8
from fromzero.arguments import parse_options

__all__ = ["COMMANDS", "main"]

# One file per command in this folder; each has a typed dataclass `Options` and `run(options)`.
# A name of two words, `data prepare`, is in data_prepare.py; see `module_name`.
COMMANDS = {
    "learn": "the ten-week course: write every part, hear what went wrong",
    "doctor": "check this machine: installation, numerics, speed, what it can train",
    "data prepare": "tokenize a corpus of any size, clean it, keep it for training",
    "train": "train a model from plain text, and see it write",
    "tokenizer train": "learn a tokenizer from text, and see how well it compresses",
    "generate": "continue a prompt",
    "chat": "talk with a model",
    "finetune": "teach a model a new task with LoRA",
    "evaluate": "measure models: on a text, on tasks, side by side",
    "quantize": "store a model's weights in 8 or 4 bits",
    "import": "turn a Hugging Face checkpoint into a model directory",
    "export": "write a model for other programs: transformers, vLLM, llama.cpp, Ollama",
    "models": "the table of presets: parameters, FLOPs, memory",
    "plan": "before renting GPUs: memory, time, cost, expected loss, what to change",
}

INTERRUPTED = 130  # what shells give a program that Ctrl-C ended
USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake is one line on stderr."""
    prepare_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    wants_traceback = bool(os.environ.get("FROMZERO_TRACEBACK"))
    if "--traceback" in arguments:
        arguments.remove("--traceback")
        wants_traceback = True
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            return run_command(arguments)
    except KeyboardInterrupt:
        print("fromzero: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `fromzero models | head`
        # Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not is_users_to_fix(error):
            raise
        if wants_traceback:
            traceback.print_exc()
        print(f"fromzero: error: {one_line(error)}", file=sys.stderr)
        return USER_ERROR


def run_command(arguments: list[str]) -> int:
    """Import the command's file, parse its options and run it."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        print(f"fromzero {installed_version()}")
        return 0
    name, rest = command_name(arguments)
    module = importlib.import_module(module_name(name))
    program = f"fromzero {name}"
    if hasattr(module, "parse"):  # a command whose defaults depend on its options
        options = module.parse(rest, program=program)
    else:
        options = parse_options(module.Options, rest, program=program)
    if options is None:  # the help was asked for and given
        return 0
    return int(module.run(options) or 0)


def command_name(arguments: list[str]) -> tuple[str, list[str]]:
    """Split the words of a command line into the command, of one or two words, and the rest."""
    for n_words in (2, 1):
        name = " ".join(arguments[:n_words])
        if name in COMMANDS:
            return name, arguments[n_words:]
    group = [known for known in COMMANDS if known.startswith(f"{arguments[0]} ")]
    given = " ".join(arguments[:2]) if group else arguments[0]
    guess = nearest(given, group or COMMANDS)
    hint = f"did you mean {guess!r}? " if guess else ""
    commands = ", ".join(group or COMMANDS)
    raise ValueError(f"unknown command {given!r}; {hint}commands: {commands}")


def module_name(command: str) -> str:
    """The file of a command: `data prepare` → data_prepare, `import`, a keyword, → import_."""
    name = command.replace(" ", "_")
    return f"fromzero.{name}_" if keyword.iskeyword(name) else f"fromzero.{name}"


def overview() -> str:
    """What `fromzero --help` prints."""
    lines = ["usage: fromzero COMMAND [OPTIONS]", ""]
    lines += ["Learn large language models by building one.", "", "commands:"]
    width = max(map(len, COMMANDS)) + 2
    lines += [f"  {name:<{width}}{summary}" for name, summary in COMMANDS.items()]
    lines += ["", "first steps:"]
    lines += ["  fromzero doctor                       # is everything in order here?"]
    lines += ["  fromzero train                        # a first model, in minutes"]
    lines += ['  fromzero generate --prompt "import "  # what it has learned']
    lines += ["", "`fromzero COMMAND --help` lists a command's options, with examples."]
    lines += ["`--traceback` (or FROMZERO_TRACEBACK=1) shows where an error comes from."]
    return "\n".join(lines)


def installed_version() -> str:
    """The version from the package's metadata."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("llm-from-zero")
    except PackageNotFoundError:
        return "(not installed)"


def prepare_streams() -> None:
    """Make stdout and stderr print anything: UTF-8, unless the user has asked for another."""
    if not os.environ.get("PYTHONIOENCODING"):
        use_utf8()
        return
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning on one line, without the place in the source that Python would add."""
    print(f"fromzero: warning: {' '.join(str(message).split())}", file=sys.stderr)


def is_users_to_fix(error: Exception) -> bool:
    """Is this a mistake or a lack that the user can mend, not a fault of the program?"""
    if isinstance(error, (ValueError, OSError, ImportError, MemoryError)):
        return True
    # Named, not imported: torch and safetensors may not even be loaded.
    if type(error).__name__ in ("SafetensorError", "OutOfMemoryError"):
        return True
    text = str(error).lower()
    signs = ("out of memory", "not enough memory", "can't allocate memory", "no space left")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def one_line(error: Exception) -> str:
    """An error's message on one line, with what to do about the commonest lacks."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; install what the project needs: pip install -r requirements.txt"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    message = " ".join(str(error).split()) or type(error).__name__
    if "memory" in message.lower() and not isinstance(error, (ValueError, OSError)):
        message = f"{message[:200]}; use a smaller --batch-size, --block-size or --preset"
    return message


if __name__ == "__main__":
    sys.exit(main())
