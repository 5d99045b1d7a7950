"""`gradscale sweep`: one recipe over a grid of settings, and how far apart the results are."""
