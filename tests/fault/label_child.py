"""Labels a table with quick experts and dies where `MTV_FAULT` says: `python label_child.py TABLE CONFIG.json`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from label_tables import QuickExpert

from mtv_core import experts, labelling
from mtv_core.executor import SerialExecutor
from mtv_core.labelling_config import LabelConfig


def load(name: str, config: Any) -> Any:
    return QuickExpert(name, config)


if __name__ == "__main__":
    experts.load = load
    print("ready", flush=True)
    labelling.run(sys.argv[1], LabelConfig.model_validate_json(Path(sys.argv[2]).read_text()), SerialExecutor())
    print("done", flush=True)
