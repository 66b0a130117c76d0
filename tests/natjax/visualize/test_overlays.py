"""Colours of classes, tinted pixels, and objects drawn onto an image."""

import cv2
import numpy as np

from natjax.visualize import overlays


def test_colors_of_classes_differ():
    colors = overlays.class_colors(150)
    assert colors.shape == (150, 3)
    np.testing.assert_array_equal(colors[:11], overlays.class_colors(11))
    lab = cv2.cvtColor(np.float32(colors)[None] / 255, cv2.COLOR_RGB2LAB)[0]
    # 2.3 is a difference that one just sees.
    for classes, least in ((11, 50), (150, 12)):
        apart = np.linalg.norm(lab[:classes, None] - lab[None, :classes], axis=-1)
        assert apart[np.triu_indices(classes, 1)].min() > least
    assert lab[1:, 0].min() >= 29
    assert lab[1:, 0].max() <= 86


def test_overlay_tints_classes_and_leaves_what_has_none():
    image = np.full((1, 2, 3), 100, np.uint8)
    colors = np.array([[0, 200, 50]], np.uint8)
    tinted = overlays.overlay(image, np.array([[0, 255]]), colors)
    np.testing.assert_array_equal(tinted[0, 0], [40, 160, 70])
    np.testing.assert_array_equal(tinted[0, 1], [100, 100, 100])


def test_objects_are_drawn_in_the_colours_of_their_classes():
    image = np.full((90, 120, 3), 100, np.uint8)
    boxes = np.array([[20.0, 40, 60, 80], [50, 50, 110, 70]])
    masks = np.zeros((2, 90, 120), bool)
    masks[0, 45:75, 30:50] = masks[1, 55:65, 40:100] = True
    names, labels = ("cat", "dog", "a thing with a long name"), np.array([2, 0])
    drawn = overlays.draw_objects(
        image, boxes, labels, names, masks=masks, scores=np.array([0.9, 0.5])
    )
    colors = overlays.class_colors(4)[1:]
    for (left, top, _, _), label in zip(boxes.astype(int), labels, strict=True):
        np.testing.assert_array_equal(drawn[top, left + 2], colors[label])
    # Half tinted; where both are, by the second and then by the first.
    second = 100 + 0.45 * (colors[0] - 100.0)
    first = second + 0.45 * (colors[2] - second)
    np.testing.assert_allclose(drawn[60, 80], second, atol=1)
    np.testing.assert_allclose(drawn[60, 45], first, atol=1)
    np.testing.assert_array_equal(drawn[85, 115], image[85, 115])
    # Words stand above the box, on the colour of the class.
    above = drawn[28:40, 20:60].reshape(-1, 3)
    assert (above == colors[2]).all(1).mean() > 0.3
    assert len(np.unique(above, axis=0)) > 3
    plain = overlays.draw_objects(image, boxes[:0], labels[:0], names)
    np.testing.assert_array_equal(plain, image)
