"""Sharding view: what part of a layer each tensor holds on this rank. The only place that knows about engines."""
