"""Every named optimizer, with options that put it to work on a few small tensors in a few steps."""

from functools import partial

from gradscale.optim.dgs import DGSLARS, DGSSGD, DGSAdam, DGSAdamW
from gradscale.optim.sgg_adam import SGGAdam, SGGAdamW
from gradscale.optim.sgg_lamb import SGGLamb
from gradscale.optim.sgg_lion import SGGLion
from gradscale.optim.sgg_sgd import SGGSGD

SGGS = [SGGAdamW, SGGAdam, SGGSGD, SGGLion, SGGLamb]
DGSS = [DGSSGD, DGSLARS, DGSAdamW, DGSAdam]
# Each form once, with and without a running importance, both resets, and sums of every kind.
EVERY = {
    "SGGAdamW": partial(SGGAdamW, recluster_interval=1),
    "SGGAdam": partial(SGGAdam, recluster_interval=1),
    "SGGSGD": partial(SGGSGD, recluster_interval=1),
    "SGGSGD, momentum": partial(SGGSGD, recluster_interval=1, momentum=0.9, nesterov=True),
    "SGGLion": partial(SGGLion, recluster_interval=1),
    "SGGLamb": partial(SGGLamb, recluster_interval=2, adapt_vectors=True),
    "DGSSGD": partial(DGSSGD, momentum=0.9, importance_decay=0.5, reset_spike=1.5, eps=0.01, sigma=0.1),
    "DGSLARS": partial(DGSLARS, trust_coefficient=0.1, form="equation", importance_decay=0.9, reset_every=2),
    "DGSAdamW": partial(DGSAdamW, form="normalized", factor_bounds=(0.5, 2.0)),
    "DGSAdam": partial(DGSAdam, form="importance", importance_eps=0.1, reset="hard"),
}
NAMES = list(EVERY)
DGS_NAMES = [name for name in NAMES if name.startswith("DGS")]
