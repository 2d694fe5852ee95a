from __future__ import annotations

import json
import math

import pytest
from safetensors import SafetensorError

from posthoc_inn.config import TrainConfig
from posthoc_inn.errors import ConfigError, DataError
from posthoc_inn.files import plain, replace_file, writing


def test_plain_data_is_what_json_gives_back():
    found = plain(
        {1: (1.5, math.nan, [math.inf, {"a": -math.inf}]), "config": TrainConfig(), "none": None, "flag": True}
    )
    assert found["1"] == [1.5, None, [None, {"a": None}]]
    assert found["config"] == TrainConfig().to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_configuration_comes_back_from_its_plain_data():
    config = TrainConfig(clip=0.0, steps=7)
    assert TrainConfig.from_dict(plain(config)) == config
    with pytest.raises(ConfigError, match="clip must be"):
        TrainConfig(clip=math.inf)


def test_a_file_is_replaced_at_once(tmp_path):
    (tmp_path / "a").write_text("old")
    replace_file(tmp_path / "a", "new ü")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "new ü"
    with pytest.raises(OSError, match="nowhere"):
        replace_file(tmp_path / "nowhere" / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), "File too large"),
        (SafetensorError("Error while serializing: something new"), "Error while serializing: something new"),
    ],
)
def test_what_the_disk_refuses_is_told_as_that(tmp_path, error, told):
    target = tmp_path / "a.json"
    target.with_name("a.json.partial").write_text("half")
    with pytest.raises(DataError) as raised, writing(target):
        raise error
    assert str(raised.value) == f"{target} cannot be written: {told}. Make room there, or choose another directory."
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_blamed_on_the_disk(tmp_path):
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("a")
