# ruff: noqa: UP031, UP036
"""装好了吗？`python verify_setup.py` 与 `fromzero doctor` 相同，缺软件包时先说怎样装。

Written so that even an old Python can read it far enough to print the hint.
"""

import sys


def missing():
    """Return what is missing, as a sentence; an empty string when the doctor can start."""
    if sys.version_info < (3, 10):
        return "Python 3.10 or newer is needed, this is %d.%d" % sys.version_info[:2]
    try:
        from foundation.environment import missing_packages
    except ImportError:
        return "run this file from the repository, beside the folder foundation/"
    names = missing_packages()
    if names:
        return "not installed: %s" % ", ".join(names)
    try:
        import torch  # noqa: F401 - a broken installation shows here, e.g. a missing DLL
    except Exception as error:
        return "torch is installed but does not load: %s" % str(error).strip().split("\n")[0]
    return ""


def main():
    """Say what is missing and how to install it; if nothing is, run the doctor."""
    problem = missing()
    if problem:
        sys.stderr.write("verify_setup: error: %s\n" % problem)
        sys.stderr.write(
            "  -> %s -m pip install -r requirements.txt\n" % (sys.executable or "python")
        )
        return 1
    from fromzero.main import main as fromzero

    return fromzero(["doctor"] + sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
