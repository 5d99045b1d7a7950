"""Sharding view: which layer each stretch of each tensor belongs to. The only place that knows about engines."""
