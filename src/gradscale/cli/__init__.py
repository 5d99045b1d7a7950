"""The `gradscale` command."""
