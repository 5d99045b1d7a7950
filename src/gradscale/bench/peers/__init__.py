"""Rules of others for clipping and for loss scales, to compare with: re-implemented from their formulas."""
