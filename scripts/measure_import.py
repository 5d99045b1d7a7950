"""Measure what the autoload door costs every `import torch`: the door open, closed, and torch's own autoload off.

    python scripts/measure_import.py [--repeats 9]

Fresh processes, interleaved so that a busy machine hits all cases alike; medians. The last line is the direct cost of
`gradscale_autoload.autoload()` inside one process, which needs no difference of two noisy numbers.
"""

import argparse
import os
import statistics
import subprocess
import sys

IMPORT = "import time; t = time.perf_counter(); import torch; print(time.perf_counter() - t)"
DIRECT = (
    "import torch, sys, time; t = time.perf_counter(); import gradscale_autoload; gradscale_autoload.autoload(); "
    "t = time.perf_counter() - t; assert 'gradscale' in sys.modules; print(t)"
)
CLOSED, OFF = {"GRADSCALE_AUTOLOAD": "0"}, {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
CASES = {
    "import torch, door open": (IMPORT, {}),
    "import torch, door closed (GRADSCALE_AUTOLOAD=0)": (IMPORT, CLOSED),
    "import torch, torch's autoload off (TORCH_DEVICE_BACKEND_AUTOLOAD=0)": (IMPORT, OFF),
    "autoload() alone": (DIRECT, OFF),
}


def measure(code: str, environment: dict[str, str]) -> float:
    """Return the seconds that `code` prints in a fresh process."""
    env = {key: value for key, value in os.environ.items() if key not in (*CLOSED, *OFF)}
    return float(subprocess.check_output([sys.executable, "-c", code], env={**env, **environment}, text=True))


def main() -> None:
    """Print the median of each case in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="processes per case (default: 9)")
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {name: [] for name in CASES}
    measure(IMPORT, {})  # fills the file cache and writes bytecode
    measure(DIRECT, OFF)
    for _ in range(repeats):
        for name, (code, environment) in CASES.items():
            times[name].append(measure(code, environment))
    for name, values in times.items():
        middle, low, high = (1000 * value for value in (statistics.median(values), min(values), max(values)))
        print(f"{middle:8.1f} ms  ({low:.1f} to {high:.1f})  {name}")


if __name__ == "__main__":
    main()
