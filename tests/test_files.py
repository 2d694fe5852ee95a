from __future__ import annotations

import json
import math

import pytest

from posthoc_inn.config import TrainConfig
from posthoc_inn.errors import ConfigError
from posthoc_inn.files import plain, replace_file


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
