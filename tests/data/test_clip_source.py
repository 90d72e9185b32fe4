"""What each kind of source knows about its clips besides their elements."""

import importlib

import numpy as np
import pytest

from vidmotion.data import clip_source, pipeline
from vidmotion.data.heads import HeadsSource
from vidmotion.data.portraits import DrawnPortraitSource

PROTOCOLS = ("Boxes", "Renders", "Classes", "Fills")
KNOWS = {
    "heads": set(PROTOCOLS),
    "sprites": {"Renders", "Classes"},
    "videos": {"Classes"},
    "latents": {"Classes"},
    "tfds_videos": {"Classes"},
}


@pytest.mark.parametrize("kind", pipeline.SOURCES)
def test_every_source_declares_what_it_knows(kind):
    module, name = pipeline.SOURCES[kind]
    source = getattr(importlib.import_module(module), name)
    if not isinstance(source, type):  # a function that makes a source of another kind
        source = DrawnPortraitSource
    assert clip_source.ClipSource in source.__mro__
    members = {
        "Boxes": ("boxes",),
        "Renders": ("video", "swap", "identity_id", "factors"),
        "Classes": ("class_of",),
        "Fills": ("fill",),
    }
    known = {p for p in PROTOCOLS if all(hasattr(source, name) for name in members[p])}
    expected = {"Fills"} if source is DrawnPortraitSource else KNOWS.get(kind, set())
    assert known == expected


def test_heads_are_named_by_their_identity():
    source = HeadsSource(16, 2, 4, identities=2)
    assert isinstance(source, clip_source.Boxes) and isinstance(source, clip_source.Renders)
    assert [source.origin(i) for i in range(4)] == ["0", "1", "0", "1"]
    assert source.transforms == () and source.networks == {}


def test_any_object_with_the_members_is_a_source():
    class Mine:
        fingerprint, transforms, networks = "00", (), {}

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return {"x": np.zeros(1)}

        def origin(self, index):
            return "0"

    assert isinstance(Mine(), clip_source.ClipSource)
    assert not isinstance(Mine(), clip_source.Classes)
