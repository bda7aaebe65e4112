import numpy as np
import pytest

from mmffnet.datasets.scenes import CLASSES, draw_portrait, draw_scene


def test_the_numbers_of_a_picture_decide_about_it():
    scene = draw_scene(3, 0, 7, 64)
    again = draw_scene(3, 0, 7, 64)
    np.testing.assert_array_equal(scene.image, again.image)
    for numbers in ((4, 0, 7, 64), (3, 1, 7, 64), (3, 0, 11, 64)):
        assert (draw_scene(*numbers).image != scene.image).any()


@pytest.mark.parametrize('size', [32, 47, 160])
def test_masks_are_what_is_visible(size):
    for index in range(24):
        scene = draw_scene(0, 0, index, size)
        masks = [scene.lines, *(instance.mask for instance in scene.instances)]
        assert np.sum(masks, axis=0).max() <= 1, 'a pixel shows one thing only'
        assert all(mask.shape == scene.image.shape[:2] for mask in masks)
        assert all(mask.sum() >= size * size // 1000 for mask in masks[1:])


def test_scenes_are_varied():
    scenes = [draw_scene(0, 0, index, 160) for index in range(50)]
    instances = [instance for scene in scenes for instance in scene.instances]
    assert {scene.image.shape for scene in scenes} == {
        (160, 160, 3),
        (120, 160, 3),
        (160, 120, 3),
    }
    assert [index for index, scene in enumerate(scenes) if not scene.instances] == [9, 34]
    assert sum(instance.crowd for instance in instances) >= 3
    assert max(len(scene.instances) for scene in scenes) >= 5
    counts = np.bincount([instance.label for instance in instances])
    assert len(counts) == len(CLASSES)
    assert counts.min() > counts.sum() / 10
    assert 0 < np.mean([scene.lines.mean() for scene in scenes]) < 0.05, 'lines are thin'


@pytest.fixture(scope='module')
def portraits():
    return [draw_portrait(0, 2, index, 64) for index in range(200)]


def test_one_object_dominates_a_portrait(portraits):
    for index, scene in enumerate(portraits):
        largest = max(scene.instances, key=lambda instance: instance.mask.sum())
        assert largest.label == index % len(CLASSES)
        assert largest.mask.sum() > 64 * 64 // 30


def test_colour_does_not_give_the_class_away(portraits):
    colours = np.array([scene.image[scene.instances[0].mask].mean(axis=0) for scene in portraits])
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    guessed = distances.argmin(axis=1) % len(CLASSES)
    accuracy = np.mean(guessed == np.arange(len(portraits)) % len(CLASSES))
    assert accuracy < 0.3, 'blind guesses reach 0.2'


@pytest.mark.parametrize(
    ('name', 'low', 'high'),
    [
        ('box', 0.55, 0.9),
        ('disc', 0.68, 0.82),
        ('ring', 0.4, 0.65),
        ('star', 0.3, 0.5),
        ('triangle', 0.4, 0.6),
    ],
)
def test_shapes_have_their_form(name, low, high, portraits):
    """The share of its bounding box that an object fills tells the classes apart."""
    shares, centres = [], []
    for scene in portraits[CLASSES.index(name) :: len(CLASSES)]:
        mask = scene.instances[0].mask
        ys, xs = np.nonzero(mask)
        box = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        shares.append(box.mean())
        centres.append(box[box.shape[0] // 2, box.shape[1] // 2])
    assert low < np.median(shares) < high
    assert np.mean(centres) < 0.3 if name == 'ring' else np.mean(centres) > 0.7
