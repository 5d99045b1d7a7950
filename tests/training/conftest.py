import random

import pytest
import yaml


def make_text(count=120, seed=0):
    words = "the of optimizer gradient layer scale momentum cluster step loss and with a is under".split()
    generator = random.Random(seed)
    lines = (" ".join(generator.choice(words) for _ in range(40)) for _ in range(count))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A folder with text and a cache that all tests share."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "train.txt").write_text(make_text())
    (folder / "validation.txt").write_text(make_text(20, seed=1))
    return folder


@pytest.fixture(autouse=True)
def private_cache(workplace, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))


@pytest.fixture
def settings(workplace, tmp_path):
    """The keys of a tiny run."""
    return {
        "output_dir": str(tmp_path / "out"),
        "model_config": {
            "model_type": "llama",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        "vocab_size": 300,
        "train_files": str(workplace / "train.txt"),
        "validation_files": str(workplace / "validation.txt"),
        "block_size": 32,
        "max_steps": 8,
        "learning_rate": "3e-3",
        "per_device_train_batch_size": 4,
        "logging_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "plot": False,
    }


@pytest.fixture
def write(tmp_path):
    """Write settings as YAML and return the path."""

    def write(settings, name="config.yaml"):
        path = tmp_path / name
        path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings, sort_keys=False))
        return str(path)

    return write
