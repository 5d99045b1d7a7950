"""`gradscale bench quality`: which optimizer ends lower, each at its own best learning rate."""
