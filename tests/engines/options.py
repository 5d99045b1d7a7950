"""What the optimizers of most engine tests are made with."""

OPTIONS = {
    "lr": 1e-2,
    "recluster_interval": 4,
    "scale_decay": 0.5,
    "weight_decay": 0.1,
    "global_mda": "clusters",  # a D that all layers, and all ranks, have a part in
}
