"""The grid of `gradscale sweep`, its table and its heat map, without training. Guards against cells mixed up."""

import json
import math

import pytest

from gradscale.sweep.grid import Axis, cells_of, folder_name, read_axes, title
from gradscale.sweep.report import table, write_report
from gradscale.training.errors import ConfigError

AXES = [
    Axis("learning_rate", ("1e-3", "3e-3")),
    Axis("batch", ("4", "8", "16")),
    Axis("alsdgc", ("off", "robust,window=64")),
]


def test_axes_are_read_with_values_that_hold_commas():
    axes = read_axes(["learning_rate=1e-3,3e-3", "--batch=4, 8,16", "alsdgc=off,'robust,window=64'"])
    assert axes == AXES
    assert read_axes(["optim_args={n_clusters: 2, labels: live},{}"])[0].values == (
        "{n_clusters: 2, labels: live}",
        "{}",
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "nothing to sweep over"),
        (["learning_rate"], "'learning_rate' is malformed: expected key=value,value"),
        (["learning_rate=1e-3,,2e-3"], "is malformed"),
        (["=1,2"], "is malformed"),
        (["seed=1,2,1"], "names a value twice"),
        (["seed=1,2", "seed=3"], "--over seed is given twice"),
        (["optim_args=[1,2"], "is malformed: '\\[' is not closed"),
    ],
)
def test_malformed_axes_are_refused(texts, message):
    with pytest.raises(ConfigError, match=message):
        read_axes(texts)


def test_every_cell_has_a_folder_of_its_own_that_a_file_system_can_have():
    cells = cells_of(AXES)
    assert len(cells) == 12 and cells[1] == ("1e-3", "4", "robust,window=64")
    names = [folder_name(AXES, cell) for cell in cells]
    assert len(set(names)) == 12 and names[0] == "learning_rate=1e-3,batch=4,alsdgc=off"
    assert all("/" not in name and " " not in name for name in names)
    near = [folder_name([Axis("path", ())], (value,)) for value in ("a/b", "a_b", "a b", "a" * 100, "a" * 101)]
    assert len(set(near)) == 5 and all(len(name) < 80 for name in near)
    assert title(AXES, cells[1]) == "learning_rate=1e-3 batch=4 alsdgc=robust,window=64"


def results():
    found = {}
    for place, cell in enumerate(cells_of(AXES)):
        found[cell] = {"status": "finished", "validation_loss": 3 + place / 10}
    found["1e-3", "4", "off"] = None
    found["3e-3", "16", "off"] = {"status": "diverged", "validation_loss": 2.0}
    return found


def test_the_table_has_every_cell_in_its_place_and_the_best_in_bold():
    text = table(AXES, results())
    off, robust = text.split("**alsdgc=robust,window=64**")
    assert "| learning_rate \\ batch | 4 | 8 | 16 |" in off
    assert "| 1e-3 | missing | **3.2000** | 3.4000 |" in off and "| 3e-3 | 3.6000 | 3.8000 | diverged |" in off
    assert "| 1e-3 | **3.1000** | 3.3000 | 3.5000 |" in robust
    one = table(AXES[:1], {("1e-3",): {"status": "finished", "validation_loss": 2.0}, ("3e-3",): None})
    assert "| learning_rate | loss |" in one and "| 1e-3 | **2.0000** |" in one and "| 3e-3 | missing |" in one


def test_the_report_is_a_json_file_a_table_and_pictures(tmp_path):
    written = write_report(tmp_path, AXES, results())
    assert [path.name for path in written] == ["sweep.json", "sweep.md", "heat_map.png", "heat_map.svg"]
    saved = json.loads((tmp_path / "sweep.json").read_text())
    assert saved["axes"]["batch"] == ["4", "8", "16"] and len(saved["cells"]) == 12
    assert saved["cells"][0] == {"learning_rate": "1e-3", "batch": "4", "alsdgc": "off", "status": "missing"}
    assert math.isclose(saved["cells"][1]["validation_loss"], 3.1)
    assert (tmp_path / "heat_map.png").stat().st_size > 5000
    picture = (tmp_path / "heat_map.svg").read_text()
    assert "<svg" in picture and len(picture) > 5000
