"""The metrics of GLUE (Wang et al., 2018, Table 1), from arrays of predictions and labels; all between -1 and 1."""

import numpy as np


def accuracy(predicted, labels):
    """Share of predictions [rows] that are the label."""
    return float(np.mean(predicted == labels))


def f1(predicted, labels):
    """F1 of class 1; 0 where neither predictions nor labels have it."""
    hits = np.sum((predicted == 1) & (labels == 1))
    named = np.sum(predicted == 1) + np.sum(labels == 1)
    return float(2 * hits / named) if named else 0.0


def matthews(predicted, labels):
    """Matthews correlation of two classes; 0 where predictions or labels are all of one class."""
    return pearson(predicted == 1, labels == 1)


def pearson(predicted, labels):
    """Pearson correlation; 0 where one side is constant."""
    x, y = (np.asarray(side, np.float64) - np.mean(side, dtype=np.float64) for side in (predicted, labels))
    spread = np.sqrt(np.sum(x * x) * np.sum(y * y))
    return float(np.sum(x * y) / spread) if spread else 0.0


def spearman(predicted, labels):
    """Pearson correlation of ranks; equal values share the mean of their ranks."""
    return pearson(_ranks(predicted), _ranks(labels))


def _ranks(values):
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]
