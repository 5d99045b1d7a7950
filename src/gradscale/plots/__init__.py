"""What `gradscale plot` draws: one file per picture, all in one style. matplotlib is needed by the drawing files alone."""
