"""Image classification for `gradscale train`: residual networks, images, and studies that compare optimizers."""
