"""Operations of detectors on boxes, regions and masks, as functions without parameters.

Boxes are ``[..., 4]`` with x and y of the top left and of the bottom right corner, in pixels; a
width is ``x2 - x1``. Sizes of images are height, then width. Boxes are computed in float32, or
float64 where they come so, whatever the dtype of the model. Numbers of boxes are static, so a
function that finds fewer says by a mask which entries count.
"""
