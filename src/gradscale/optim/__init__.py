"""Optimizers: the one step loop, its state, and the named classes."""
