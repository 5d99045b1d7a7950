"""GradientNormCallback in the Trainer on two ranks: a layer's norm is that of the whole layer, whoever holds its parts.

Guards against norms of one rank's shard, and against ranks that wait for each other.
"""

import pytest
from accelerate.state import AcceleratorState

from tests.engines import cases_gradient_norms as cases
from tests.engines.launch import run_ranks
from tests.engines.trainer_engines import KINDS

ENGINES = ("ddp", "fsdp1", "fsdp1 flat", "fsdp2")


def test_norms_of_shards_are_those_of_whole_layers(tmp_path):
    _, single = cases.runs(0, 1, ["single"], tmp_path)["single"]
    AcceleratorState._reset_state(reset_partial_state=True)
    main, other = run_ranks(cases.runs, 2, tmp_path / "ranks", ENGINES, str(tmp_path))
    assert [line["step"] for line in single] == [2, 4]
    for name in ENGINES:
        kind, lines = main[name]
        assert kind == KINDS[name] == other[name][0]
        assert [line["step"] for line in lines] == [2, 4]
        for line, expected in zip(lines, single, strict=True):
            assert line["total"] == pytest.approx(expected["total"], rel=1e-3)
            if name == "fsdp1 flat":  # one vector for all parameters of a unit
                squares = sum(norm**2 for norm in line["norms"].values())
                assert squares == pytest.approx(line["total"] ** 2, rel=1e-6) and len(line["norms"]) > 1
            else:
                assert line["norms"] == pytest.approx(expected["norms"], rel=1e-3, abs=1e-7)
