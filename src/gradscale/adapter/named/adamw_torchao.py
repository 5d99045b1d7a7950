"""SGG on AdamW with moments in 8 or 4 bits, of torchao."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch.optim import Optimizer

from gradscale.adapter.named.base import NamedAdapter


class SGGAdamWTorch8bit(NamedAdapter):
    """SGG on torchao's AdamW8bit, which keeps both moments in 8 bits, by blocks (Dettmers et al., arXiv 2110.02861).

    The momentum is made dense for one layer at a time when it is grouped. Tensors of fewer than 4096 elements, or whose
    number is no multiple of `block_size`, keep their moments in their dtype. The library compiles its step for each
    shape of tensors and each `weight_decay`; `kernel="eager"` runs it without, where there is no compiler.

    Its stochastic rounding of bfloat16 weights is no option here: what SGG scales has not been added to them yet.

    Args and errors: see `NamedAdapter`.
    """

    name = "sgg_adamw_torch_8bit"
    takes_shards = True
    # A shard has blocks of its own, or too few elements for any, so that its moments are rounded otherwise than the
    # layer's: on a few small tensors that is more than a statistic of the wrong extent would be.
    tries_shards = False
    bits: ClassVar[int] = 8

    def _make_base(self, groups: list[dict[str, Any]], rates: dict[str, Any], values: dict[str, Any]) -> Optimizer:
        from gradscale.adapter.named import torchao_base

        kinds = {8: torchao_base.PlainAdamW8bit, 4: torchao_base.PlainAdamW4bit}
        eager = values.pop("kernel") == "eager"
        base = kinds[self.bits](groups, **rates, **values)
        base.eager = eager
        return cast(Optimizer, base)


class SGGAdamWTorch4bit(SGGAdamWTorch8bit):
    """SGG on torchao's AdamW4bit, which keeps both moments in 4 bits (Li et al., arXiv 2309.01507).

    Args, errors and the rest: see `SGGAdamWTorch8bit`.
    """

    name = "sgg_adamw_torch_4bit"
    bits = 4
