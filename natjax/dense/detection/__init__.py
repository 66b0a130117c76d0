"""Detectors of boxes and masks: Mask R-CNN and Cascade Mask R-CNN."""
