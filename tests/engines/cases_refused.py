"""What each rank does in `test_refused.py`: engines that are not supported, the real ones."""

import torch
from torch.distributed.fsdp import FullyShardedDataParallel

from gradscale import SGGAdamW
from tests.engines.cases_accelerate import OPTIONS, next_token_loss
from tests.optim.training import batches, make_model


def fsdp1(rank, world_size):
    """By (`use_orig_params`, when the optimizer was made): the error of its first step, and the size of its state.

    An optimizer made before FSDP1 hides the parameters holds none that FSDP1 knows, whichever optimizer it is.
    """
    results = {}
    for original, made in ((True, "before"), (True, "after"), (False, "after")):
        model = make_model()
        optimizer = SGGAdamW(model.parameters(), **OPTIONS)
        model = FullyShardedDataParallel(model, use_orig_params=original, device_id=torch.device("cpu"))
        if made == "after":
            optimizer = SGGAdamW(model.parameters(), **OPTIONS)
        next_token_loss(model, next(iter(batches(1)))).backward()
        try:
            optimizer.step()
            error = None
        except RuntimeError as refusal:
            error = f"{type(refusal).__name__}: {refusal}"
        results[original, made] = error, len(optimizer.state)
    return results
