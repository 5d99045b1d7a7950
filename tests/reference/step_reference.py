"""One optimizer step in float64, written out from the papers' equations for one tensor at a time."""

import torch


class ReferenceStep:
    """AdamW or Adam with a learning-rate factor per element.

    Args:
        param: initial values, any dtype.
        coupled: whether weight decay enters the gradient (Adam).
    """

    def __init__(
        self, param, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, coupled=False, nesterov=False
    ):
        self.param = param.detach().to(torch.float64, copy=True)
        self.m, self.v, self.largest = (torch.zeros_like(self.param) for _ in range(3))
        self.betas, self.eps, self.weight_decay, self.coupled = betas, eps, weight_decay, coupled
        self.amsgrad, self.nesterov, self.t = amsgrad, nesterov, 0

    def step(self, grad, lr, factor=1.0):
        self.t += 1
        beta1, beta2 = self.betas
        grad = grad.double()
        if self.coupled:
            grad = grad + self.weight_decay * self.param
        self.m = beta1 * self.m + (1 - beta1) * grad
        self.v = beta2 * self.v + (1 - beta2) * grad**2
        self.largest = torch.maximum(self.largest, self.v)
        m_hat = self.m / (1 - beta1**self.t)
        if self.nesterov:  # the first moment of the next step, if the same gradient came again
            m_hat = (beta1 * self.m + (1 - beta1) * grad) / (1 - beta1 ** (self.t + 1))
        v_hat = (self.largest if self.amsgrad else self.v) / (1 - beta2**self.t)
        decay = 0.0 if self.coupled else lr * self.weight_decay * self.param
        self.param = self.param - decay - lr * factor * m_hat / (v_hat.sqrt() + self.eps)
