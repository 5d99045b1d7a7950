"""`gradscale doctor`: what a run would be, told from its configuration before it starts."""
