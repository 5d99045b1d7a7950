"""The robust rules of ALSDGC, slowly: every list is kept whole and every statistic is computed from the start.

Written from the rules (docs/alsdgc.md), with NumPy; it shares no code with `src`.
"""

import math

import numpy as np


def robust_center(values):
    values = np.asarray(values, dtype=np.float64)
    center = np.median(values)
    return float(center), float(1.4826 * np.median(np.abs(values - center)))


class Norms:
    """All that entered since the statistics last began; the window is its end."""

    def __init__(self, o):
        self.o, self.entered, self.sides, self.raw, self.warm = o, [], [], [], False

    def usual(self):
        values = self.entered[-self.o["window"] :]
        median, deviation = robust_center(values)
        deviation = max(deviation, self.o["deviation_floor"])
        return median, deviation, median + self.o["clip_deviations"] * deviation * (1 + 4 / len(values))

    def threshold(self):
        value = math.exp(self.usual()[2]) if self.warm else self.o["warmup_threshold"]
        top = math.inf if self.o["max_threshold"] is None else self.o["max_threshold"]
        return min(max(value, self.o["min_threshold"]), top)

    def threshold_for(self, norm):
        if self.warm and norm > 0:
            median, _, upper = self.usual()
            x = math.log(norm)
            if x > upper:
                value = math.exp(median + (upper - median) ** 2 / (x - median))
                top = math.inf if self.o["max_threshold"] is None else self.o["max_threshold"]
                return min(max(value, self.o["min_threshold"]), top)
        return self.threshold()

    def extreme(self, norm):
        if not self.warm or norm == 0:
            return False
        median, deviation, _ = self.usual()
        return (math.log(norm) - median) / deviation > self.o["skip_norm_deviations"]

    def take(self, norm):
        if norm == 0:
            return False
        x = math.log(norm)
        if not self.warm:
            self.entered.append(x)
            self.warm = len(self.entered) >= self.o["warmup_steps"]
            return False
        median, _, upper = self.usual()
        lower = 2 * median - upper
        self.raw.append(x)
        self.sides.append("above" if x > upper else "below" if x < lower else "usual")
        recent = self.sides[-self.o["reseed_span"] :]
        for side in ("above", "below"):
            if recent.count(side) >= self.o["reseed_after"]:
                raw = self.raw[-self.o["reseed_span"] :]
                self.entered = raw[recent.index(side) :]
                self.sides, self.raw = [], []
                return True
        self.entered.append(min(x, upper))
        return False


class Reference:
    """Answers (threshold, loss scale, skip, reason) as ALSDGC(mode="robust") does."""

    def __init__(self, options):
        self.o = options
        self.norms = Norms(options)
        self.losses = []
        self.skips = 0
        self.scale = options["loss_scale"]
        self.history = []  # "good" or "overflow" or "forgiven", since the beginning
        self.changed_at = 0  # good steps before it do not count for growth
        self.proven = set()
        self.failed = None

    def good_since(self, place):
        return sum(1 for one in self.history[place:] if one == "good")

    def last(self, *names):
        places = [place for place, one in enumerate(self.history) if one in names]
        return places[-1] if places else None

    def overflow(self):
        if self.scale is None:
            return "non-finite norm"
        o = self.o
        near = o["confirm_interval"]
        last, forgiven = self.last("overflow", "forgiven"), self.last("forgiven")
        confirmed = self.scale > max(self.proven, default=0) or (last is not None and self.good_since(last) < near)
        if not confirmed and (forgiven is None or self.good_since(forgiven) >= o["forgive_interval"]):
            self.history.append("forgiven")
            return "overflow forgiven"
        if confirmed:
            self.failed = self.scale
            self.failed_at = len(self.history)
            self.proven = set() if self.scale <= max(self.proven, default=0) else self.proven
        self.scale = max(self.scale * o["backoff_factor"], o["min_loss_scale"])
        self.history.append("overflow")
        self.changed_at = len(self.history)
        return "overflow"

    def good(self):
        if self.scale is None:
            return
        o = self.o
        self.history.append("good")
        good = self.good_since(self.changed_at)
        if good >= o["growth_interval"]:
            self.proven.add(self.scale)
            if self.failed is not None and self.scale >= self.failed:
                self.failed = None
        larger = min(self.scale * o["growth_factor"], o["max_loss_scale"])
        if self.failed is not None and larger >= self.failed:
            if self.good_since(self.failed_at) < o["retry_interval"]:
                return
        if larger > self.scale and good >= o["growth_interval"]:
            self.scale = larger
            self.changed_at = len(self.history)

    def loss_usual(self):
        values = self.losses[-self.o["window"] :]
        median, deviation = robust_center(values)
        return median, max(deviation, self.o["deviation_floor"] * abs(median))

    def loss_extreme(self, loss):
        if len(self.losses) < self.o["warmup_steps"]:
            return False
        median, deviation = self.loss_usual()
        return loss > median + self.o["skip_loss_deviations"] * deviation

    def observe(self, norm, loss, found_inf):
        threshold = self.norms.threshold()
        if loss is not None and not math.isfinite(loss):
            return threshold, self.scale, True, "non-finite loss"
        if found_inf or (norm is not None and not math.isfinite(norm)):
            reason = self.overflow()
            return threshold, self.scale, True, reason
        self.good()
        if norm is not None and loss is not None:
            if self.norms.extreme(norm) and self.loss_extreme(loss):
                if self.skips < self.o["max_skips"]:
                    self.skips += 1
                    return threshold, self.scale, True, "outlier"
            else:
                self.skips = 0
        warm = self.norms.warm
        threshold = self.norms.threshold_for(norm or 0.0)
        anew = norm is not None and self.norms.take(norm)
        if anew:
            threshold = self.norms.threshold_for(norm)
            self.losses = []
        if loss is not None:
            if len(self.losses) >= self.o["warmup_steps"]:
                median, deviation = self.loss_usual()
                loss = min(loss, median + self.o["clip_deviations"] * deviation)
            self.losses.append(loss)
        clipped = norm is not None and norm > threshold
        reason = "reseeded" if anew else "clipped" if clipped else "" if warm else "warmup"
        return threshold, self.scale, False, reason
