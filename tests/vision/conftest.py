import io

import pytest
import yaml


@pytest.fixture
def settings(tmp_path):
    """The keys of a study of a few steps."""
    return {
        "task": "image-classification",
        "output_dir": str(tmp_path / "out"),
        "data": "digits",
        "models": {"resnet8": "soft"},
        "methods": [
            {"table": "SGD", "name": "Baseline", "optim": "sgd", "optim_args": {"momentum": 0.9}, "learning_rate": 0.1}
        ],
        "seeds": [0],
        "target_accuracy": 95,
        "max_steps": 4,
        "eval_steps": 2,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 512,
        "use_cpu": True,
    }


@pytest.fixture
def write(tmp_path):
    """Write settings as YAML and return the path."""

    def write(settings, name="study.yaml"):
        path = tmp_path / name
        path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings, sort_keys=False))
        return str(path)

    return write


@pytest.fixture
def write_parquet(tmp_path):
    """Write images as the hub lays them out, and return the path.

    `images` are arrays of `[height, width]` or `[height, width, 3]`, or bytes for what is no image.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def write_parquet(name, images, labels, *, column="img", label_column="label"):
        cells = []
        for image in images:
            if not isinstance(image, bytes | None):
                buffer = io.BytesIO()
                Image.fromarray(np.asarray(image, dtype=np.uint8)).save(buffer, "PNG")
                image = buffer.getvalue()
            cells.append({"bytes": image, "path": None})
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pq.write_table(pa.table({column: pa.array(cells, kind), label_column: labels}), path)
        return path

    return write_parquet
