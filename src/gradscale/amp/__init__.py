"""Mixed precision and clipping: a `GradScaler` driven by ALSDGC, and gradient norms over shards."""
