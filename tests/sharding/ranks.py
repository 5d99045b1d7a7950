"""Start a function on several ranks of one machine, with gloo, and collect what they return."""

import pickle
import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_on_ranks(function, world_size, folder, *args):
    """Return `function(rank, world_size, *args)` of every rank, in order; a failure on one fails all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, (world_size, port, str(folder), function, args), nprocs=world_size, join=True)
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in range(world_size)]


def _rank(rank, world_size, port, folder, function, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    try:
        result = function(rank, world_size, *args)
        (Path(folder) / f"{rank}.pkl").write_bytes(pickle.dumps(result))
        dist.barrier()
    finally:
        dist.destroy_process_group()
