"""The examples of docs/peft.md run as they stand there, one after the other in one session."""

import re
from pathlib import Path

from gradscale import SGGAdamW

PAGE = Path(__file__).parents[2] / "docs" / "peft.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_examples_run_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, reports = {}, []
    for code in EXAMPLES:
        exec(compile(code, str(PAGE), "exec"), names)
        if "trainer.train()" in code:
            reports.append(names["trainer"].optimizer.optimizer.grouping_report)
    assert len(reports) == 2 and all(len(report.layers[0].pooled) == 4 for report in reports)  # q, k, v and o
    optimizer = names["optimizer"]
    assert type(optimizer) is SGGAdamW and [len(group["params"]) for group in optimizer.param_groups] == [8, 8]
    assert callable(names["AllocateRanks"]().on_optimizer_step)
