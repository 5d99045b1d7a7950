"""Base update rules: pure functions that turn a gradient and its moments into an update direction."""
