"""Detectors that are sure of some things without a training."""

import torch

KINDS = ("faster_rcnn", "retinanet")


def enliven(detector):
    """Give a new detector weights with which it is sure of some things, and statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in detector.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.momentum = None  # the mean over all batches
                part.weight.uniform_(0.8, 1.2, generator=generator)
                part.bias.uniform_(-0.2, 0.2, generator=generator)
        for name, parameter in detector.named_parameters():
            if name.endswith(("fc_cls.weight", "rpn_cls.weight", "fc_reg.weight")):
                parameter.mul_(40)
            if name.endswith("retina_cls.weight"):
                parameter.mul_(10)
            if name.endswith("retina_cls.bias"):
                parameter.fill_(-3)
        detector.train()
        for _ in range(2):
            coarse = torch.randn(4, 3, 32, 32, generator=generator)
            pyramid = detector.extract_feat(torch.nn.functional.interpolate(coarse, (256, 256), mode="bilinear"))
            if hasattr(detector, "roi_head"):
                corner = torch.rand(64, 2, generator=generator) * 128
                rois = torch.cat([torch.zeros(64, 1), corner, corner + 16 + corner.flip(0)], dim=1)
                detector.roi_head._bbox_forward(pyramid, rois)
            else:
                detector.bbox_head(pyramid)
    return detector.eval()
