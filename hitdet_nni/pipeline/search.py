"""The second stage: the search of all three components together, and the architecture that it decides."""

from __future__ import annotations

import logging
from dataclasses import replace

from hitdet_nni.config.architecture import Architecture, load_architecture, save_architecture
from hitdet_nni.config.search_space import SearchSpace
from hitdet_nni.config.settings import Settings
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.weights_file import save_weights
from hitdet_nni.nas.checks import budget_cost_model, check_budget
from hitdet_nni.nas.epoch_record import EpochRecord
from hitdet_nni.nas.outlook import Outlook
from hitdet_nni.nas.provenance import SEARCH, describe_architecture, keep_latency_table
from hitdet_nni.nas.sampled_decode import decode_by_samples
from hitdet_nni.nas.supernet import Phase, train_supernet
from hitdet_nni.pipeline.stage import OnEpoch, clear_training, ignore_epoch, note_images
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.samples import write_samples
from hitdet_nni.runs.tables import append_alphas, append_metrics
from hitdet_nni.training.supernet_pretraining import with_pretrained_backbone

logger = logging.getLogger(__name__)

STAGE = "search"


def search(
    run: RunDirectory, space: SearchSpace, settings: Settings, data: DetectionData, on_epoch: OnEpoch = ignore_epoch
) -> Architecture:
    """Search all three components in their sub spaces and write ``architecture.json``.

    Does nothing where the file is there already; otherwise goes on from the newest checkpoint.

    Source:
        Sections 3.3 and 3.4.
    """
    if distributed.broadcast_object(run.architecture.exists()):
        if distributed.is_main():
            clear_training(run, STAGE)
        return load_architecture(run.architecture)
    check_budget(space, settings, len(data.classes))
    note_images(run, data)
    costs = budget_cost_model(settings.skeleton, len(data.classes), settings.search.budget)
    logger.info("search: %s", Outlook.of(costs, space).sentence())
    if costs.latency is not None and distributed.is_main():
        keep_latency_table(run, costs.latency)

    def keep(record: EpochRecord) -> None:
        write_epoch(run, record)
        on_epoch(STAGE, record)

    checkpoints = CheckpointFolder(run.checkpoints(STAGE), settings.checkpoint.keep)
    data = replace(data, halves=run.halves)
    phase = with_pretrained_backbone(run, _phase(space, settings), settings, data, settings.seed)
    trained = train_supernet(phase, settings, data, settings.seed, keep, checkpoints)
    sample = trained.sample
    if not phase.decodes:
        decoded = decode_by_samples(trained, settings, data, settings.seed, STAGE)
        sample |= distributed.broadcast_object(dict(decoded.best))
    architecture = describe_architecture(
        run.path.name,
        sample,
        space,
        settings,
        data.classes,
        source=SEARCH,
        activations=trained.activations,
        latency=costs.latency,
    )
    if distributed.is_main():
        run.note_warnings(STAGE, trained.warnings)
        run.note_activations(STAGE, trained.activations)
        if not phase.decodes:
            write_samples(run.samples, decoded.rows(architecture.sample, costs))
        save_weights(trained.module.model.detector, run.supernet)
        save_architecture(architecture, run.architecture)
        clear_training(run, STAGE)
    distributed.barrier()
    return architecture


def _phase(space: SearchSpace, settings: Settings) -> Phase:
    """Return what the search trains, and how."""
    given = settings.search
    return Phase(
        stage=STAGE,
        skeleton=settings.skeleton,
        space=space,
        epochs=given.epochs,
        warmup_epochs=given.warmup_epochs,
        flops_weight=given.flops_weight,
        budget=given.budget,
        pretrained=given.pretrained,
        decodes=given.decode != "samples",
    )


def write_epoch(run: RunDirectory, record: EpochRecord) -> None:
    """Add an epoch to ``search/metrics.csv`` and ``search/alphas.csv``; one that is there already is replaced."""
    append_alphas(run.alphas, record.epoch, record.alphas, record.probabilities)
    append_metrics(run.search_metrics, record.epoch, record.metrics())
