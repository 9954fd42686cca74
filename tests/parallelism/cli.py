"""`fromzero …` inside torchrun, with an accident: `FAULT=kill:1:7` kills rank 1 in step 7."""

import os
import signal
import sys

from training.train_step import TrainStep

RANK = int(os.environ.get("RANK", "0"))


def with_accident(call, step_of_accident):
    def step(self, number):
        if number == step_of_accident:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        return call(self, number)

    return step


def main():
    kind, rank, step = os.environ.get("FAULT", "none:0:0").split(":")
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if kind == "kill" and int(rank) == RANK and first:
        TrainStep.__call__ = with_accident(TrainStep.__call__, int(step))
    from fromzero.main import main as fromzero

    return fromzero(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
