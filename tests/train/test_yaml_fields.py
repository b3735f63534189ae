"""Fields of a YAML file in their own types, and refusals that name the field."""

from __future__ import annotations

import pytest
import yaml

from hqtvae_fast.config import ConfigError
from hqtvae_fast.train.config import Stage1Run, Stage2Run, read_run

BASE = {"data": "pictures", "out": "run", "steps": 5}


@pytest.mark.parametrize(
    "line,name,value",
    [
        ("learning_rate: 4e-5", "learning_rate", 4e-5),  # text to YAML 1.1
        ("learning_rate: 1", "learning_rate", 1.0),
        ("precision: no", "precision", "no"),  # false to YAML 1.1
        ("steps: 1e3", "steps", 1000),
        ("data: one.tar", "data", ("one.tar",)),
        ("data: [one.tar, two.tar]", "data", ("one.tar", "two.tar")),
        ("stop_after: null", "stop_after", None),
        ("flip: true", "flip", True),
    ],
)
def test_yaml_values(tmp_path, line, name, value):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(BASE) + line + "\n")
    found = getattr(read_run(Stage1Run, file, {}), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "name,value,expected",
    [
        ("batch_size", "many", "an integer of 1 or more; got 'many'"),
        ("batch_size", 1.5, "an integer of 1 or more; got 1.5"),
        ("batch_size", True, "an integer of 1 or more; got True"),
        ("learning_rate", "fast", "a number of 0 or more or none; got 'fast'"),
        ("flip", "sometimes", "true or false; got 'sometimes'"),
        ("model", "large", "a mapping; got 'large'"),
        ("out", 7, "text; got 7"),
        ("batch_size", None, "an integer of 1 or more; got None"),
    ],
)
def test_refusals_name_the_field(tmp_path, name, value, expected):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**BASE, "vae": "vae", name: value}))
    with pytest.raises(ConfigError, match=f"{name}: expected {expected}"):
        read_run(Stage2Run, file, {})
