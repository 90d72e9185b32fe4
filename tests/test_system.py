"""Building a system from a config section: every mistake is reported together with the valid choices."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from vidmotion import system
from vidmotion.errors import ConfigError


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    tiny.register(monkeypatch)


def test_the_fields_are_those_of_the_section():
    built = system.build(ConfigDict({"name": "tiny", "width": 5}))
    assert built == tiny.Tiny(width=5)
    assert hash(built) == hash(tiny.Tiny(width=5))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"name='tony': choose one of .*bcd.*sprites_judge, tiny"):
        system.build({"name": "tony"})
    with pytest.raises(ConfigError, match="name=None"):
        system.build({})


def test_an_unknown_field_lists_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"config\.system: Tiny.*'widht'.*Known fields: width, nan_at"
    ):
        system.build({"name": "tiny", "widht": 3})


def test_lists_become_tuples_so_that_systems_stay_hashable():
    built = system.build(ConfigDict({"name": "tiny", "width": [1, [2, 3]]}))
    assert built.width == (1, (2, 3))
    assert isinstance(hash(built), int)


def test_a_batch_that_does_not_fit_names_every_offender():
    built = tiny.Tiny()
    video = np.zeros((4, 2, 16, 16, 3), np.uint8)
    system.check_batch(built, {"video": video, "extra": video}, 4)
    with pytest.raises(ConfigError, match=r"video: missing \(the data yield \['clip'\]\)"):
        system.check_batch(built, {"clip": video}, 4)
    with pytest.raises(ConfigError, match=r"float32\(4, 2, 16, 16, 3\), expected uint8\(4,"):
        system.check_batch(built, {"video": video.astype(np.float32)}, 4)
    with pytest.raises(ConfigError, match=r"uint8\(4, 2, 16, 16, 3\), expected uint8\(8,"):
        system.check_batch(built, {"video": video}, 8)


def test_compute_dtypes():
    assert system.dtype("bfloat16") == jnp.bfloat16
    with pytest.raises(ConfigError, match="'float16': choose float32 or bfloat16"):
        system.dtype("float16")


def test_a_system_without_pictures_says_so():
    with pytest.raises(ConfigError, match="Tiny has nothing to sample"):
        tiny.Tiny().sample(None, None, None)


def test_a_paper_provides_eight_members_and_what_it_chooses_of_three_protocols():
    public = {name for name in vars(system.System) if not name.startswith("_")}
    assert public == {
        *("players", "input_spec", "init", "init_mutable", "consts_spec", "loss", "sample"),
        "evaluators",
    }
    built = tiny.Tiny()
    for protocol in (system.MotionTransfer, system.Released, system.Describes):
        assert not isinstance(built, protocol)
    transfers = {name for name in system.SYSTEMS if issubclass_of(name, system.MotionTransfer)}
    released = {name for name in system.SYSTEMS if issubclass_of(name, system.Released)}
    assert transfers == {"bcd", "vidtwin", "warpface", "xnemo"}
    assert released == {"vidtwin", "warpface", "xnemo"}


def issubclass_of(name, protocol):
    return name != "tiny" and protocol in system.find(name).__mro__


def test_state_is_inherited_where_place_and_shape_agree():
    fresh = {"disc": {"mean": np.zeros(2), "var": np.ones(2)}, "count": np.zeros(3)}
    there = {"disc": {"mean": np.full(2, 5.0)}, "count": np.ones(4), "more": np.ones(1)}
    taken = system.inherited(fresh, there)
    assert taken.keys() == {"disc", "count"}
    np.testing.assert_array_equal(taken["disc"]["mean"], [5, 5])
    np.testing.assert_array_equal(taken["disc"]["var"], [1, 1])
    np.testing.assert_array_equal(taken["count"], [0, 0, 0])
