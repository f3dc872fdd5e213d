"""Labels one table after the other with quick experts, as they are named on its input: `python labeller_child.py CONFIG.json`."""

from __future__ import annotations

import sys
from pathlib import Path

from label_child import load

from mtv_core import experts, labelling
from mtv_core.executor import SerialExecutor
from mtv_core.labelling_config import LabelConfig

if __name__ == "__main__":
    experts.load = load
    label = LabelConfig.model_validate_json(Path(sys.argv[1]).read_text())
    print("ready", flush=True)
    for line in sys.stdin:
        labelling.run(line.strip(), label, SerialExecutor())
        print("done", flush=True)
