"""ALSDGC: a controller that decides a clip threshold and a loss scale from what training shows, in plain Python."""

from gradscale.control.alsdgc import ALSDGC
from gradscale.control.decision import Decision

__all__ = ["ALSDGC", "Decision"]
