"""The door that every `import torch` opens: torch calls `autoload()` through the `torch.backends` entry point.

It makes `--optim sgg_adamw` work in scripts that never import gradscale. GRADSCALE_AUTOLOAD=0 (or false, off, no)
closes it. A module beside the package, not inside it: with the door closed nothing of gradscale is imported, and a
later `import gradscale` still registers.
"""

import os

opening = False  # True while the package is being imported from here; it then keeps failures to itself
failure: Exception | None = None  # why the last call did nothing, for those who look


def autoload() -> None:
    """Register gradscale's optimizers with transformers, silently. Never raises: that would break `import torch`."""
    global opening, failure
    try:
        if os.environ.get("GRADSCALE_AUTOLOAD", "1").strip().lower() in {"0", "false", "off", "no"}:
            return
        opening = True
        import gradscale  # noqa: F401  # its import registers
    except Exception as error:
        failure = error
    finally:
        opening = False
