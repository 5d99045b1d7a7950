"""Bridges to transformers: the post-import hook, the names of `--optim`, the Trainer's optimizer and callback."""
