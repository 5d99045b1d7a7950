"""One pass over a stretch of a parameter: what it computes, and how it runs, compiled or eagerly."""
