"""Scalers: pure functions that turn group statistics into one learning-rate factor per element."""
