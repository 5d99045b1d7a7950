"""DGS on SGD, LARS, Adam and AdamW, written plainly in float64 and numpy: slow, obvious, and independent of `src`.

Equation of section III.A and steps of section III.B of doi 10.22214/ijraset.2024.62669, with the documented readings:
the factor multiplies the base's update and not its decoupled weight decay, and importance is that of the gradient
without weight decay.
"""

import math

import numpy as np

FORMS = ["equation", "importance", "full", "normalized"]
BASES = ["sgd", "lars", "adam", "adamw"]


class ReferenceDGS:
    """A whole optimizer over a dict of arrays; each is a layer.

    Args:
        params: initial values by name.
        form: one of FORMS, or None for the base alone.
        gamma: weight in the collective sum: a number, or a number by name. None is 1 / n with n elements in the model.
        importance_decay: rho of the running importance; None takes |g| itself.
        reset_keep: how much the past weighs after a reset, 0 if it is hard.
        reset_every: steps between two resets: steps N, 2 N, ... reset before they take their gradient in.
        trust_vectors: whether LARS adapts vectors as well; without, their trust ratio is 1.
        reset_spike: by how many times its level the mean |g| must exceed it to reset.
    """

    def __init__(
        self,
        params,
        *,
        base="sgd",
        form="full",
        lr=0.1,
        beta=1.0,
        sigma=1e-3,
        gamma=None,
        eps=1e-3,
        bounds=(0.1, 10.0),
        importance_decay=None,
        reset_keep=0.1,
        reset_every=None,
        reset_spike=None,
        weight_decay=0.0,
        momentum=0.0,
        dampening=0.0,
        nesterov=False,
        trust_coefficient=1e-3,
        trust_vectors=True,
        betas=(0.9, 0.999),
        base_eps=1e-8,
    ):
        assert base in BASES and (form is None or form in FORMS)
        self.params = {name: np.array(value, dtype=np.float64) for name, value in params.items()}
        self.n = sum(value.size for value in self.params.values())
        self.base, self.form, self.lr, self.beta, self.sigma = base, form, lr, beta, sigma
        self.gamma = gamma if isinstance(gamma, dict) else dict.fromkeys(params, 1 / self.n if gamma is None else gamma)
        self.eps, self.bounds, self.decay, self.reset_keep = eps, bounds, importance_decay, reset_keep
        self.reset_every, self.reset_spike = reset_every, reset_spike
        self.weight_decay, self.momentum, self.dampening, self.nesterov = weight_decay, momentum, dampening, nesterov
        self.trust_coefficient, self.trust_vectors, self.betas = trust_coefficient, trust_vectors, betas
        self.base_eps = base_eps
        self.t = 0
        # |g| of every step so far with its weight, newest last: a reset changes the weights and nothing else.
        self.past = []
        self.weights = []
        self.levels = []
        self.first, self.second = ({name: np.zeros_like(v) for name, v in self.params.items()} for _ in range(2))
        self.was_reset = False

    def level(self):
        """Bias-corrected running mean of the model's mean |g|, or None without history."""
        if not self.levels:
            return None
        weights = [0.99**age for age in reversed(range(len(self.levels)))]
        return sum(w * x for w, x in zip(weights, self.levels, strict=True)) / sum(weights)

    def spiked(self, mean):
        """Whether today's mean |g| is a spike; takes it into the level."""
        level = self.level()
        if not math.isfinite(mean):
            return False
        spiked = level is not None and mean > self.reset_spike * level
        if mean > 0:
            self.levels.append(self.reset_spike * level if spiked else mean)
        return spiked

    def importance(self, size):
        """I of every layer, from |g| of today and, if it is a running mean, from those before."""
        if self.decay is None:
            return size
        periodic = self.reset_every is not None and self.t % self.reset_every == 0
        mean = sum(each.sum() for each in size.values()) / self.n
        spiked = self.reset_spike is not None and self.spiked(mean)
        self.was_reset = bool(periodic or spiked)
        self.weights = [w * self.decay * (self.reset_keep if self.was_reset else 1.0) for w in self.weights] + [1.0]
        self.past.append(size)
        return {
            name: sum(w * each[name] for w, each in zip(self.weights, self.past, strict=True)) / sum(self.weights)
            for name in size
        }

    def factor(self, importance, collective):
        """S of every element of one layer."""
        if self.form is None:
            return 1.0
        if self.form == "equation":
            return self.beta / collective
        if self.form == "importance":
            return 1 / (importance + self.eps)
        if self.form == "full":
            return self.beta / ((importance + self.eps) * collective)
        mean = importance.mean()
        if mean == 0:
            return 1.0
        return np.clip(mean / (importance + self.eps * mean), *self.bounds)

    def update(self, name, grad):
        """The base's update of one layer, which the learning rate multiplies."""
        param = self.params[name]
        decayed = grad if self.base == "adamw" else grad + self.weight_decay * param
        if self.base in ("adam", "adamw"):
            beta1, beta2 = self.betas
            self.first[name] = beta1 * self.first[name] + (1 - beta1) * decayed
            self.second[name] = beta2 * self.second[name] + (1 - beta2) * decayed**2
            m_hat, v_hat = self.first[name] / (1 - beta1**self.t), self.second[name] / (1 - beta2**self.t)
            return m_hat / (np.sqrt(v_hat) + self.base_eps)
        if self.base == "lars":
            norm, grad_norm = np.sqrt((param**2).sum()), np.sqrt((grad**2).sum())
            ratio = 1.0
            if norm > 0 and grad_norm > 0 and (param.ndim > 1 or self.trust_vectors):
                ratio = self.trust_coefficient * norm / (grad_norm + self.weight_decay * norm + self.base_eps)
            self.first[name] = self.momentum * self.first[name] + ratio * decayed
            return self.first[name]
        if self.momentum == 0:
            return decayed
        if self.t == 1:
            self.first[name] = decayed.copy()
        else:
            self.first[name] = self.momentum * self.first[name] + (1 - self.dampening) * decayed
        return decayed + self.momentum * self.first[name] if self.nesterov else self.first[name]

    def step(self, grads):
        """One step from a dict of gradients."""
        self.t += 1
        grads = {name: np.asarray(grad, dtype=np.float64) for name, grad in grads.items()}
        importance = self.importance({name: np.abs(grad) for name, grad in grads.items()})
        collective = self.sigma + sum(self.gamma[name] * each.sum() for name, each in importance.items())
        for name, grad in grads.items():
            change = self.lr * self.factor(importance[name], collective) * self.update(name, grad)
            if self.base == "adamw":
                self.params[name] = self.params[name] * (1 - self.lr * self.weight_decay)
            self.params[name] = self.params[name] - change
