"""The unmodified script of tests/integrations, whose ranks on CPU accelerate takes for those of GPUs."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.engines.fsdp_on_cpu import relabel_cpu_ranks  # noqa: E402

relabel_cpu_ranks()
script = Path(__file__).parents[2] / "integrations" / "scripts" / "run_clm.py"
sys.path.insert(0, str(script.parent))
runpy.run_path(str(script), run_name="__main__")
