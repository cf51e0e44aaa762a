"""What NNI's multi-trial strategies evaluate: each architecture retrained, or with a trained supernet's weights."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nni
import torch
from nni.nas.evaluator import Evaluator
from nni.nas.space import SimplifiedModelSpace
from torch import nn

from hitdet_nni.config.architecture import Architecture, save_architecture
from hitdet_nni.config.settings import Settings, load_settings
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.data.sources import DetectionData, open_images
from hitdet_nni.engine import distributed
from hitdet_nni.engine.randomness import fork_rng
from hitdet_nni.engine.recalibration import recalibrate
from hitdet_nni.engine.weights_file import save_weights
from hitdet_nni.errors import InputError
from hitdet_nni.integration.nni_results import complete_sample, describe_sample, require_detector_space
from hitdet_nni.integration.nni_words import final_report
from hitdet_nni.io import WEIGHTS_FILE
from hitdet_nni.model.detector import HitDetectorSpace, build_detector
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.pipeline.retraining import retrain_architecture
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.same_settings import essential, plain
from hitdet_nni.training.retrain import evaluate

SOURCE = "multi-trial search"


def retrain_sample(
    model: HitDetectorSpace, *, config: str, folder: str, overrides: Mapping[str, object] | None = None
) -> float:
    """Retrain the architecture of a model that NNI gives, and report its mAP to NNI.

    The function of an NNI evaluator:
    ``FunctionalEvaluator(retrain_sample, config="digits", folder="/data/runs/random")``. The arguments are plain, so
    that NNI can send them to trials of their own.

    Args:
        model: The model space, frozen by NNI to one architecture.
        config: Config file, or a shipped config's name; its skeleton is replaced by the model's.
        folder: Each architecture has a run directory in it, named after what the result depends on. One that is
            finished is not trained again, one that stopped half-way goes on.
        overrides: Dotted keys and their values, laid over the config.

    Returns:
        The mAP on the validation images, which NNI is given as ``default``, besides parameters and GFLOPs.

    Raises:
        InputError: If a setting or the data is bad, the space is for another number of classes, or NNI did not make
            the model in its simplified format.
    """
    require_detector_space(model, "retrain_sample")
    settings = load_settings(config, overrides).model_copy(update={"skeleton": model.skeleton})
    torch.set_num_threads(settings.threads)
    sample = current_sample(model)
    settings, data = open_images(settings)
    name = _name(settings, sample)
    architecture = describe_sample(name, model, sample, settings, data, SOURCE)
    run = RunDirectory(Path(folder) / name)

    def report(epoch: int, metrics: dict[str, float]) -> None:
        nni.report_intermediate_result(metrics["mAP"])

    # NNI's strategies may draw by torch's random numbers, which a training sets: they are to go on as they were.
    with fork_rng(), run.held(wait=True):
        run.open(settings, resume=True)
        save_architecture(architecture, run.architecture)
        result = retrain_architecture(run, architecture, settings, data, report, resume=True)
    nni.report_final_result(final_report(result))
    return float(result["mAP"])


def current_sample(model: HitDetectorSpace) -> dict[str, str]:
    """Return the sample of the model that NNI is evaluating, one operator for every searched layer.

    Args:
        model: The model that NNI's evaluator was given.

    Raises:
        InputError: If NNI is not evaluating a model, or not in its simplified format. In the raw one all models of a
            grid search share one sample, the last, whatever they are.
        RuntimeError: If the model is not the sample's.
    """
    parameter = nni.get_current_parameter()
    if not isinstance(parameter, SimplifiedModelSpace) or parameter.sample is None:
        raise InputError(
            f"got {type(parameter).__name__}",
            source="multi-trial evaluator",
            key="model_format",
            allowed='a NasExperiment with NasExperimentConfig(model_format="simplified")',
        )
    labels = {layer.label for layer in model.skeleton.searched_layers()}
    # What else is in it are arguments of the evaluator that NNI was to choose.
    sample = complete_sample(model, {label: name for label, name in parameter.sample.items() if label in labels})
    if repr(model.detector) != repr(build_detector(model.skeleton, sample, model.num_classes)):
        raise RuntimeError(f"the model is not that of the sample {sample}")
    return sample


def _name(settings: Settings, sample: Mapping[str, str]) -> str:
    """Return a name for everything that the result of a retraining depends on."""
    dependencies = {"settings": essential(plain(settings)), "sample": sample}
    return hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()[:12]


class InheritedWeights(Evaluator):  # type: ignore[misc]
    """NNI evaluator that trains nothing: the mAP of each architecture with the weights of a trained supernet.

    The second stage of single-path one-shot search, for the sequential engine: the supernet stays in this process.

    Args:
        supernet: A space that a one-shot strategy has trained.
        settings: Data and seed.
        data: The images.
        batches: Training batches, at least one, on which the statistics of batch normalisation are taken anew; the
            supernet's are those of all paths mixed.

    Raises:
        InputError: If there are to be no batches.

    Source:
        Guo et al., Single Path One-Shot, ECCV 2020.
    """

    def __init__(
        self, supernet: HitDetectorSpace, settings: Settings, data: DetectionData, *, batches: int = 20
    ) -> None:
        if batches < 1:
            raise InputError(f"got {batches}", source="InheritedWeights", key="batches", allowed="at least 1")
        require_detector_space(supernet, "InheritedWeights")
        self.supernet = supernet
        self.settings = settings.model_copy(update={"skeleton": supernet.skeleton})
        self.data = data
        self.batches = batches

    def evaluate(self, model: HitDetectorSpace) -> float:
        """Give a model the supernet's weights, and report its mAP to NNI.

        Args:
            model: The model space, frozen by NNI to one architecture.

        Raises:
            InputError: If the architecture is not of the supernet's space, or NNI did not make the model in its
                simplified format.
        """
        sample = current_sample(model)
        name = _name(self.settings, sample)
        architecture = describe_sample(name, self.supernet, sample, self.settings, self.data, SOURCE)
        detector = model.detector.to(distributed.device())
        detector.load_state_dict(self.supernet.freeze(sample).detector.state_dict())
        with fork_rng():
            recalibrate(detector, self._batches(), partial(detection_loss, detector))
            mean_precision = self._evaluate(detector, architecture)
        nni.report_final_result(mean_precision)
        return mean_precision

    def _batches(self) -> list[Any]:
        torch.manual_seed(self.settings.seed)  # every architecture sees the same images
        loader = search_loaders(self.data, self.settings.data, self.settings.skeleton, self.settings.seed)[0]
        return list(itertools.islice(loader, self.batches))

    def _evaluate(self, detector: nn.Module, architecture: Architecture) -> float:
        with TemporaryDirectory() as folder:
            weights = Path(folder) / WEIGHTS_FILE
            save_weights(detector, weights)
            return evaluate(architecture, weights, self.settings, self.data)["mAP"]
