"""Start a function on several ranks, as torchrun does: the same environment, and the end of one rank is that of all.

The ranks are forked from a server that has imported everything once. So a launch costs no imports, and many of them
(a run, its death, its resume, each in new processes) fit into a short test.
"""

import gc
import multiprocessing
import os
import pickle
import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PRELOAD = [
    "torch.distributed.checkpoint",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
    "peft",
    "deepspeed",
]
# Read by DeepSpeed when it is imported, which the server does before any rank could say so.
os.environ.setdefault("DS_ACCELERATOR", "cpu")


def run_ranks(function, world_size, folder, *args):
    """Return `function(rank, world_size, *args)` of every rank, in order.

    Raises:
        ProcessRaisedException: a rank failed; the others have been ended then.
        ProcessExitedException: a rank was killed, likewise.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(PRELOAD)
    mp.start_processes(
        _rank, (world_size, port, str(folder), function, args), nprocs=world_size, start_method="forkserver"
    )
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in range(world_size)]


def _rank(rank, world_size, port, folder, function, args):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    gc.freeze()  # what the server has imported: the Trainer collects garbage at every start, and here are many
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    try:
        (Path(folder) / f"{rank}.pkl").write_bytes(pickle.dumps(function(rank, world_size, *args)))
        dist.barrier()
    finally:
        dist.destroy_process_group()
