"""What `gradscale plot` draws: one file per picture, all in one style (`style.py`)."""
