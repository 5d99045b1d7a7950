import random

import pytest


def make_documents(count, seed=0):
    words = "the of optimizer gradient layer scale momentum cluster step loss and with a is under".split()
    generator = random.Random(seed)
    return [
        f"Document {index}. " + " ".join(generator.choice(words) for _ in range(generator.randint(30, 80)))
        for index in range(count)
    ]


@pytest.fixture
def documents():
    return make_documents(60)


class ListSource:
    """Documents in memory."""

    description = "a list"

    def __init__(self, train, validation=()):
        self.splits = {"train": list(train), "validation": list(validation)}
        self.reads = []

    @property
    def fingerprint(self):
        return repr(self.splits)

    def documents(self, split):
        self.reads.append(split)
        yield from self.splits[split]


@pytest.fixture
def list_source():
    return ListSource
