"""What `gradscale train` does: settings, model, data, runs, timing, summary and plots."""
