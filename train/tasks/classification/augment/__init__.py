"""Augmentation of training images, with the meanings of timm 0.5.0, which trained the papers' nets.

On the hosts, on Pillow images: `crop`, `color`, `rand_augment` (the policy) and `ops` (what it may
do), put together by `pipeline`. On the devices, on whole batches: `mix` and `erase`.
"""
