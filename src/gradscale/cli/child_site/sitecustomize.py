"""Put in front of PYTHONPATH by `gradscale run`: every Python process below it registers gradscale at start-up.

It works when torch's backend autoload is off (TORCH_DEVICE_BACKEND_AUTOLOAD=0), and hands over to the sitecustomize
module that it hides, if there is one.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec


def _register() -> None:
    try:
        import gradscale  # noqa: F401  # its import registers
    except Exception:
        # A child may be another Python altogether (a build tool, an old version), which must still start.
        return


def _hand_over() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    others = [entry for entry in sys.path if os.path.abspath(entry) != here]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


_register()
_hand_over()
