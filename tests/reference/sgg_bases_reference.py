"""SGG on SGD, Lion and LAMB, plainly in float64 and numpy; clusters and scales are those of SGG-AdamW's reference.

SGD as in Sutskever et al., 2013, with torch's dampening; Lion as in arXiv 2302.06675, Algorithm 2; LAMB as in arXiv
1904.00962, Algorithm 2. The documented readings: decoupled weight decay is not scaled by S, LAMB's trust ratio is the
base's own, and vectors have none unless asked for.
"""

import numpy as np

from tests.reference.sgg_reference import ReferenceSGGAdamW


class _Base(ReferenceSGGAdamW):
    def __init__(self, params, *, maximize=False, **options):
        super().__init__(params, **options)
        self.sign_of_gradient = -1.0 if maximize else 1.0
        self.counts = dict.fromkeys(self.params, 0)

    def step(self, grads):
        """Take all gradients, group, and only then move."""
        self.step_count += 1
        taken, directions = {}, {}
        for name, grad in grads.items():
            self.counts[name] += 1
            taken[name] = self.sign_of_gradient * np.asarray(grad, dtype=np.float64)
            directions[name] = self.take(name, taken[name])
        if self.step_count % self.interval == 0:
            self.group()
        for name in grads:
            self.move(name, directions[name], self.factor(name))

    def factor(self, name):
        """S[l, c(i)] of every element."""
        if name not in self.labels:
            return 1.0
        labels = self.labels[name]
        if self.label_mode == "live" and name in self.centroids:
            centroids = self.centroids[name]
            labels = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, self.grouped(name))
        return self.scales[name][labels].reshape(self.params[name].shape)


class ReferenceSGGSGD(_Base):
    def __init__(self, params, *, momentum=0.0, dampening=0.0, nesterov=False, **options):
        super().__init__(params, **options)
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov

    def take(self, name, grad):
        grad = grad + self.weight_decay * self.params[name]
        if self.momentum == 0 or self.counts[name] == 1:
            self.m[name] = grad
        else:
            self.m[name] = self.momentum * self.m[name] + (1 - self.dampening) * grad
        return grad + self.momentum * self.m[name] if self.nesterov else self.m[name]

    def move(self, name, direction, factor):
        self.params[name] = self.params[name] - self.lr * factor * direction


class ReferenceSGGLion(_Base):
    def take(self, name, grad):
        beta1, beta2 = self.betas
        direction = np.sign(beta1 * self.m[name] + (1 - beta1) * grad)
        self.m[name] = beta2 * self.m[name] + (1 - beta2) * grad
        return direction

    def move(self, name, direction, factor):
        decayed = self.params[name] * (1 - self.lr * self.weight_decay)
        self.params[name] = decayed - self.lr * factor * direction


class ReferenceSGGLamb(_Base):
    def __init__(self, params, *, trust_clip=False, adapt_vectors=False, **options):
        super().__init__(params, **options)
        self.trust_clip, self.adapt_vectors = trust_clip, adapt_vectors

    def take(self, name, grad):
        beta1, beta2 = self.betas
        self.m[name] = beta1 * self.m[name] + (1 - beta1) * grad
        self.v[name] = beta2 * self.v[name] + (1 - beta2) * grad**2
        m_hat = self.m[name] / (1 - beta1 ** self.counts[name])
        v_hat = self.v[name] / (1 - beta2 ** self.counts[name])
        return m_hat / (np.sqrt(v_hat) + self.eps)

    def ratio(self, name, direction):
        weight = self.params[name]
        if weight.ndim < 2 and not self.adapt_vectors:
            return 1.0
        norm = np.sqrt((weight**2).sum())
        update_norm = np.sqrt(((direction + self.weight_decay * weight) ** 2).sum())
        ratio = 1.0 if norm == 0 or update_norm == 0 else norm / update_norm
        return min(ratio, 1.0) if self.trust_clip else ratio

    def move(self, name, direction, factor):
        weight, ratio = self.params[name], self.ratio(name, direction)
        self.params[name] = weight - self.lr * ratio * (factor * direction + self.weight_decay * weight)
