"""The found detector outside the framework: a module of torch and torchvision alone, and files made of it.

Nothing here imports mmdet, mmcv, mmengine or NNI.
"""
