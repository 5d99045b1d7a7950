"""What `gradscale bench` measures: the time and the memory of an optimizer's step."""
