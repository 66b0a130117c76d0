"""The task of object detection: a box, a class and a mask for every object."""
