"""SGG and DGS on any `torch.optim.Optimizer`, which is stepped one tensor at a time."""
