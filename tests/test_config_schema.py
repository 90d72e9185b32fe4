"""Sections of a config become objects, and every mistake is reported with its place and the valid choices."""

import dataclasses

import flax.linen as nn
import pytest
from ml_collections import ConfigDict

from vidmotion.config_schema import from_config, plain
from vidmotion.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Seat:
    row: int
    window: bool = False

    def __post_init__(self):
        if self.row < 1:
            raise ValueError(f"row={self.row}: at least 1")


@dataclasses.dataclass(frozen=True)
class Flight:
    seat: Seat
    stops: tuple = ()
    plane: Seat | None = None


class Wing(nn.Module):
    span: int
    dtype: str = "float32"


def test_config_dicts_become_dicts_and_lists_tuples_at_every_depth():
    section = ConfigDict({"a": [1, [2, 3]], "b": {"c": [4]}})
    assert plain(section) == {"a": (1, (2, 3)), "b": {"c": (4,)}}
    assert type(plain(section)["b"]) is dict


def test_a_mapping_within_becomes_the_dataclass_that_the_field_names():
    made = from_config(Flight, ConfigDict({"seat": {"row": 3}, "stops": [[1], 2]}), "flight")
    assert made == Flight(Seat(3), ((1,), 2))
    assert isinstance(hash(made), int)


def test_an_instance_only_gets_what_the_caller_decides():
    assert from_config(Seat, Seat(2), "seat") == Seat(2)
    assert from_config(Seat, Seat(2), "seat", window=True) == Seat(2, True)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, r"config\.flight: .*'seat'.*Known fields: seat, stops, plane$"),
        (
            {"seat": {"row": 1, "aisle": 2}},
            r"config\.flight\.seat: .*'aisle'.*fields: row, window$",
        ),
        ({"seat": {"row": 0}}, r"^config\.flight\.seat: row=0: at least 1$"),
    ],
)
def test_mistakes_are_named(section, message):
    with pytest.raises(ConfigError, match=message):
        from_config(Flight, section, "flight")


def test_a_module_is_built_alike_and_what_the_caller_decides_cannot_be_set():
    wing = from_config(Wing, {"span": 3}, "wing", dtype="bfloat16")
    assert (wing.span, wing.dtype) == (3, "bfloat16")
    assert from_config(Wing, wing, "wing", dtype="float32").dtype == "float32"
    with pytest.raises(ConfigError, match=r"config\.wing: .*'dtype'.*Known fields: span$"):
        from_config(Wing, {"span": 3, "dtype": "float16"}, "wing", dtype="bfloat16")
