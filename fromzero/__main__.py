"""`python -m fromzero …` 与 `fromzero …` 相同。"""

import sys

from fromzero.main import main

if __name__ == "__main__":
    sys.exit(main())
