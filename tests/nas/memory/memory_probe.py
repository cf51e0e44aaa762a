"""Run by test_memory.py in a process of its own: estimates the memory of a search step, then takes steps.

The argument is JSON: ``component`` (or ``trinity``), ``mode``, ``device``, ``steps``, ``settings`` by dotted key.
Writes JSON.
"""

import json
import sys
from dataclasses import asdict

import torch

from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine.precision import Precision
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.nas.memory.estimate import estimate_step_memory, peak_memory
from hitdet_nni.nas.mixed import set_activations
from hitdet_nni.nas.strategy import ColumnSparseDARTS


def searched_space(component, settings):
    if component == "trinity":
        return load_search_space("hit_detector")
    fixed = {name: [operator] for name, operator in settings.screening.fixed.model_dump().items()}
    return {**fixed, component: load_search_space("full")[component]}


def main():
    case = json.loads(sys.argv[1])
    settings = load_settings("tiny", {"data.train": 16, "data.val": 4, **case["settings"]})
    device = torch.device(case["device"])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    space = HitDetectorSpace(settings.skeleton, searched_space(case["component"], settings), 10)
    space.to(memory_format=torch.channels_last)
    ColumnSparseDARTS().mutate_model(space)
    set_activations(space, case["mode"])
    data = open_data(settings.data, 0)
    loaders = search_loaders(data, settings.data, settings.skeleton, 0)
    estimate = estimate_step_memory(space, settings, settings.skeleton, device)

    space.to(device)
    space.detector.data_preprocessor.to(device)
    precision = Precision(settings.precision, device)
    named = dict(space.named_parameters())
    alphas = [parameter for name, parameter in named.items() if name.endswith("_arch_alpha")]
    weights = [parameter for name, parameter in named.items() if not name.endswith("_arch_alpha")]
    sgd = torch.optim.SGD(weights, 1e-3, momentum=0.9, weight_decay=1e-4)
    phases = ((torch.optim.Adam(alphas, 1e-3), alphas, weights), (sgd, weights, alphas))
    for _ in range(case["steps"]):
        for (optimizer, trained, frozen), loader in zip(phases, loaders, strict=False):
            batch = next(iter(loader))
            for parameter in frozen:
                parameter.requires_grad_(False)
            with precision.autocast():
                loss = detection_loss(space.detector, batch)
            precision.backward(loss)
            precision.step(optimizer, trained, 35.0)
            optimizer.zero_grad()
            for parameter in frozen:
                parameter.requires_grad_()
    json.dump({**asdict(estimate), "total": estimate.total, "measured": peak_memory(device)}, sys.stdout)


if __name__ == "__main__":
    main()
