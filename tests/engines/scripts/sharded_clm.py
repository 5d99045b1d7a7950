"""The unmodified script of tests/integrations, whose ranks on CPU accelerate takes for those of GPUs.

DeepSpeed compiles no operators for the CPU here, which would take minutes and is not what is tested.
"""

import os
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

if os.environ.get("DS_ACCELERATOR") == "cpu":
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}
else:
    from tests.engines.fsdp_on_cpu import relabel_cpu_ranks

    relabel_cpu_ranks()
script = Path(__file__).parents[2] / "integrations" / "scripts" / "run_clm.py"
sys.path.insert(0, str(script.parent))
runpy.run_path(str(script), run_name="__main__")
