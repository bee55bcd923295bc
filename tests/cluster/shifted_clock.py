"""`python -m tests.cluster.shifted_clock`: the operator with a clock that jumps.

The seconds by which it is wrong stand in the file named by `SHIFT`, and may change while it runs.
"""

import os
from datetime import datetime, timedelta
from pathlib import Path

from finetune_operator import reconciler
from finetune_operator.__main__ import main

_right = reconciler._now


def _wrong() -> datetime:
    return _right() + timedelta(seconds=float(Path(os.environ["SHIFT"]).read_text()))


if __name__ == "__main__":
    reconciler._now = _wrong
    main()
