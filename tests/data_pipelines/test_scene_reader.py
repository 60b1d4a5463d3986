"""Pictures are read as the scenes that they were drawn from, and what is no object is not read as one."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.scenes.objects import Scene, SceneObject
from data_pipelines.scenes.placing import make_scene
from data_pipelines.scenes.rendering import render
from data_pipelines.scenes.scene_reader import read_scene


@pytest.mark.parametrize("split", ["val", "unseen"])
def test_true_pictures_are_read_without_an_error(split: str) -> None:
    for number in range(40):
        scene = make_scene(3, split, number)
        assert set(read_scene(render(scene, 3, split, number)[0]).objects) == set(scene.objects), number


def test_a_picture_without_objects() -> None:
    for number in range(10):
        assert read_scene(render(Scene(()), 0, "val", number)[0]) == Scene(())


def test_the_most_certain_comes_first() -> None:
    large, small = (
        SceneObject("red", "square", "large", "plain", 30, 30),
        SceneObject("blue", "ring", "small", "plain", 70, 70),
    )
    assert read_scene(render(Scene((small, large)), 0, "val", 0)[0]).objects == (large, small)


def test_a_faded_object_is_read_until_little_is_left_of_it() -> None:
    scene = Scene((SceneObject("red", "circle", "large", "plain", 40, 50),))
    drawn, empty = (render(s, 0, "val", 1)[0].astype(np.float32) for s in (scene, Scene(())))
    for share, found in ((0.9, 1), (0.7, 1), (0.1, 0)):
        faded = share * drawn + (1 - share) * empty
        assert len(read_scene(faded.round().astype(np.uint8)).objects) == found


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a picture of a scene is \[96, 96, 3\], not \[64, 64, 3\]"):
        read_scene(np.zeros((64, 64, 3), dtype=np.uint8))
