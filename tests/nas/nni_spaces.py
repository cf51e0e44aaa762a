"""Model spaces of every kind that NNI's DARTS runs, and a training of any of them."""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict

import nni
import nni.nas.hub.pytorch as hub
import nni.nas.nn.pytorch as searchable
import torch
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.space import RawFormatModelSpace
from torch import nn
from torch.nn.functional import cross_entropy

CLASSES = 3
FORM = (3, 8, 8)


class Net(ModelSpace, label_prefix="net"):
    """A stem, searched layers of four channels each, and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.Sequential(*self.searched())
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.layers(self.stem(x)).mean((2, 3)))


def conv(kernel, channels=4):
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2)


class Lists(Net, label_prefix="net"):
    """Candidates without names; two layers of one label."""

    def searched(self):
        yield LayerChoice([conv(1), conv(3)])
        yield nn.BatchNorm2d(4)
        yield LayerChoice([conv(3), conv(5)], label="shared")
        yield LayerChoice([nn.Identity(), nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1)])
        yield LayerChoice([conv(3), conv(5)], label="shared")


class Dicts(Net, label_prefix="net"):
    """Named candidates, with labels and without; one layer's are others."""

    def searched(self):
        yield LayerChoice({"narrow": conv(1), "wide": conv(3)}, label="first")
        yield LayerChoice(OrderedDict(narrow=conv(1), wide=conv(5)))
        yield LayerChoice({"wide": conv(3), "none": nn.Identity(), "pool": nn.AvgPool2d(3, 1, 1)}, label="last")


class Nested(Net, label_prefix="net"):
    """A choice inside a candidate."""

    def searched(self):
        inner = LayerChoice({"one": conv(1), "three": conv(3)}, label="inner")
        yield LayerChoice([nn.Sequential(inner, nn.ReLU()), conv(5)], label="outer")


class Values(Net, label_prefix="net"):
    """Choices of numbers inside NNI's mixed operations, one of them shared."""

    def searched(self):
        width = nni.choice("width", [2, 4, 6])
        yield searchable.MutableConv2d(4, width, nni.choice("kernel", [1, 3]), padding=1)
        yield searchable.MutableBatchNorm2d(width)
        yield nn.ReLU()
        yield searchable.MutableConv2d(width, 4, 3, padding=1)


class Depths(Net, label_prefix="net"):
    """A repetition of layers that are choices themselves."""

    def searched(self):
        def block(index):
            return LayerChoice({"one": conv(1), "three": conv(3)}, label=f"block{index}")

        yield searchable.Repeat(block, nni.choice("depth", [1, 3]))


class Cells(ModelSpace, label_prefix="net"):
    """A cell of the DARTS kind."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        operators = {
            "conv": lambda *_: conv(3),
            "pool": lambda *_: nn.AvgPool2d(3, 1, 1),
            "skip": lambda *_: nn.Identity(),
        }
        self.cell = searchable.Cell(operators, num_nodes=2, num_ops_per_node=1, num_predecessors=2, label="cell")
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.cell([x, x]).mean((2, 3)))


class Inputs(ModelSpace, label_prefix="net"):
    """Choices among inputs: one of them, and two."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList([conv(1), conv(3), conv(5)])
        self.one = searchable.InputChoice(n_candidates=3, n_chosen=1, reduction="sum", label="one")
        self.two = searchable.InputChoice(n_candidates=3, n_chosen=2, reduction="sum", label="two")
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        x = self.one([layer(x) for layer in self.layers])
        x = self.two([layer(x) for layer in self.layers])
        return self.head(x.mean((2, 3)))


class Attention(ModelSpace, label_prefix="net"):
    """Multi-head attention, layer norms and linear layers of searched widths."""

    def __init__(self):
        super().__init__()
        width = nni.choice("width", [8, 16])
        self.embed = searchable.MutableLinear(FORM[0] * FORM[1], width)
        self.norm = searchable.MutableLayerNorm(width)
        self.attention = searchable.MutableMultiheadAttention(width, 2, batch_first=True)
        self.hidden = searchable.MutableLinear(width, nni.choice("hidden", [4, 8]))
        self.head = searchable.MutableLinear(nni.choice("hidden", [4, 8]), CLASSES)

    def forward(self, x):
        x = self.norm(self.embed(x.flatten(1, 2).transpose(1, 2)))
        x = x + self.attention(x, x, x)[0]
        return self.head(self.hidden(x).relu().mean(1))


class Recurrent(ModelSpace, label_prefix="net"):
    """Candidates whose outputs are tuples, called with two arguments."""

    def __init__(self):
        super().__init__()
        cells = {"tanh": nn.RNN(8, 4, batch_first=True), "relu": nn.RNN(8, 4, nonlinearity="relu", batch_first=True)}
        self.layer = LayerChoice(cells, label="cell")
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        states, last = self.layer(x.flatten(1, 2), x.new_zeros(1, len(x), 4))
        return self.head(states.mean(1) + last[0])


OURS = [Lists, Dicts, Nested, Values, Depths, Cells, Inputs, Attention, Recurrent]

HUB = {
    "ProxylessNAS": lambda: hub.ProxylessNAS(num_labels=CLASSES, base_widths=(8, 4, 4, 4, 4, 4, 4, 4, 8)),
    "MobileNetV3": lambda: hub.MobileNetV3Space(num_labels=CLASSES, base_widths=(8,) * 9),
    "ShuffleNet": lambda: hub.ShuffleNetSpace(num_labels=CLASSES),
    "ShuffleNet, channels too": lambda: hub.ShuffleNetSpace(num_labels=CLASSES, channel_search=True),
    "DARTS": lambda: hub.DARTS(width=4, num_cells=3, dataset="cifar"),
    "NASNet": lambda: hub.NASNet(width=4, num_cells=3, dataset="cifar"),
    "NAS-Bench-201": lambda: hub.NasBench201(stem_out_channels=4, num_modules_per_stack=1),
    "AutoFormer": lambda: hub.AutoFormer(
        search_embed_dim=(24, 32),
        search_mlp_ratio=(1.0, 2.0),
        search_num_heads=(2, 4),
        search_depth=(1, 2),
        img_size=32,
        patch_size=8,
        num_labels=CLASSES,
    ),
}
"""The spaces of NNI's hub that its DARTS runs, on images of 32 x 32 pixels."""


class Classifier(LightningModule):
    """Cross-entropy, and plain SGD; notes the architecture parameters that the training starts from."""

    def on_train_start(self):
        self.start = {name: alpha.detach().clone() for name, alpha in named_alphas(self.model).items()}

    def training_step(self, batch, batch_idx):
        scores = self.model(batch[0])
        return cross_entropy(scores[0] if isinstance(scores, tuple) else scores, batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def train(make, strategy, steps, *, form=FORM, dtype=torch.float32, module=None, epochs=1, **options):
    """Search a space from a fixed start, with options of the trainer; return it as a supernet."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # NNI's mixed operations make their weights anew
    try:
        return _train(make, strategy, steps, form, module or Classifier(), {"max_epochs": epochs, **options})
    finally:
        torch.set_default_dtype(before)


def _train(make, strategy, steps, form, module, options):
    torch.manual_seed(0)
    space = make()
    images = torch.randn(2 * steps, *form)
    data = [(image, torch.tensor(index % CLASSES)) for index, image in enumerate(images)]
    logging.getLogger("nni").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
            enable_model_summary=False, limit_val_batches=0, **options,
        )  # fmt: skip
        loaders = DataLoader(data, batch_size=2), DataLoader(data[::-1], batch_size=2)
        evaluator = Lightning(module, trainer, *loaders)
        torch.manual_seed(1)
        search(space, evaluator, strategy)
    return strategy.supernet


def search(space, evaluator, strategy):
    """Do what an NNI experiment does, without its files."""
    strategy.initialize(RawFormatModelSpace(space, evaluator), SequentialExecutionEngine())
    strategy.run()


def named_alphas(supernet):
    """All architecture parameters, by the names that NNI's modules give them."""
    return {name: value for name, value in supernet.named_parameters() if "_arch_alpha" in name}
