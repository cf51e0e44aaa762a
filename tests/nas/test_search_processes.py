"""A search by several processes: the numbers of one process with the whole batch."""

import pytest
import torch
from group import run_group
from mmdet.models.task_modules.samplers import RandomSampler

from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine import distributed
from hitdet_nni.nas.pruning import PruningSchedule
from hitdet_nni.nas.supernet import Phase, train_supernet

SPACE = {
    "backbone": ["ir_k3_d1_e1", "sep_k3_d1", "conv_k3_d1"],
    "neck": ["sep_k3_d1", "sep_k5_d1"],
    "head": ["ir_k3_d1_e1", "sep_k3_d1"],
}
EPOCHS = 5  # of two steps each: 10 steps


def search(batch_size, batch_norm):
    """Train a supernet for 20 steps; what has been learned, and what the main process was told."""
    # Which anchors and RoIs are sampled depends on the random numbers of a process, so the first are taken instead.
    RandomSampler.random_choice = lambda self, gallery, number: gallery[:number]
    values = {"data.train": 16, "data.val": 4, "data.batch_size": batch_size, "batch_norm": batch_norm}
    if batch_norm != "frozen":
        # Training by batch statistics is chaotic: the rounding of sums in another order grows a hundredfold in a few
        # steps, until it decides a near tie among proposals. So it is made small, and the steps too.
        torch.set_default_dtype(torch.float64)
        values["weights.lr"] = 0.005
        values["supernet.activations"] = "all"  # as several processes have it: one kind of rounding
    settings = load_settings("tiny", values)
    data = open_data(settings.data, settings.seed)
    told = []
    phase = Phase(
        skeleton=settings.skeleton,
        space=SPACE,
        epochs=EPOCHS,
        warmup_epochs=0,
        sparsity_weight=0.1,
        flops_weight=1.0,
        pruning=PruningSchedule(keep={"backbone": 2, "neck": 2, "head": 2}),
    )
    trained = train_supernet(phase, settings, data, 0, lambda record: told.append(record.epoch))
    module = trained.module
    return {
        "told": told,
        "steps": len(trained.records) * 2,
        "alphas": {label: layer.alpha.detach() for label, layer in module.mixed_layers().items()},
        "kept": {label: list(map(str, layer.active_names)) for label, layer in module.mixed_layers().items()},
        "weights": {name: value.detach() for name, value in module.model.named_parameters() if "alpha" not in name},
        "losses": [record.train_loss for record in trained.records],
        "main": distributed.is_main(),
    }


@pytest.mark.parametrize("batch_norm", [pytest.param("frozen", marks=pytest.mark.slow), "synced"])
def test_two_processes_search_as_one_with_the_whole_batch(batch_norm, tmp_path, monkeypatch, request):
    monkeypatch.setattr(RandomSampler, "random_choice", RandomSampler.random_choice)  # `search` replaces it
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    whole = search(4, {"synced": "local"}.get(batch_norm, batch_norm))
    first, second = run_group(search, tmp_path, 2, batch_norm)
    assert first["told"] == list(range(EPOCHS))
    assert second["told"] == []
    assert first["kept"] == second["kept"] == whole["kept"]
    for label, alpha in first["alphas"].items():
        assert torch.equal(alpha, second["alphas"][label])
        torch.testing.assert_close(alpha, whole["alphas"][label], rtol=0, atol=1e-5)
    assert max(alpha.abs().max() for alpha in first["alphas"].values()) > 0.02  # 1e-3 at the start
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
        torch.testing.assert_close(weight, whole["weights"][name], rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.tensor(first["losses"]), torch.tensor(whole["losses"]), rtol=1e-4, atol=0)
