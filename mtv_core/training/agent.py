"""torchrun, tied to the process that started it: `python -m mtv_core.training.agent PARENT_PID <arguments of torch.distributed.run>`.

The agent asks for its own death with its parent, rather than the parent between fork and exec, where in a process with threads little
is safe.
"""

from __future__ import annotations

import os
import sys

from mtv_core.training.distributed import AGENT, die_with_parent


def main() -> None:
    """Never returns before all ranks have ended."""
    die_with_parent(int(sys.argv[1]))
    os.environ[AGENT] = str(os.getpid())
    from torch.distributed import run

    run.main(sys.argv[2:])


if __name__ == "__main__":
    main()
