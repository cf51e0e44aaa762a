"""What a command's message says in the arguments of a function."""

import inspect
import shlex

import pytest

from hitdet_nni.config.python_arguments import in_arguments

QUOTED = shlex.quote("data.root=/it's here")


def function(settings=None, resume=False):
    """With what a message may name."""


@pytest.mark.parametrize(
    ("said", "in_python"),
    [
        ("allowed: --set retrain.epochs=3", 'allowed: settings={"retrain.epochs": 3}'),
        (
            "allowed: --set retrain.epochs=1 --set 'retrain.milestones=[]' to resume",
            'allowed: settings={"retrain.epochs": 1, "retrain.milestones": []} to resume',
        ),
        ("such as --set data.root=my_images; or", "such as settings={\"data.root\": 'my_images'}; or"),
        ("as --set search.budget.gflops=X, or --resume", 'as settings={"search.budget.gflops": X}, or resume=True'),
        ("--set data.builtin=null", 'settings={"data.builtin": None}'),
        (
            f"allowed: --set {QUOTED} --set data.train_ann=null",
            'allowed: settings={"data.root": "/it\'s here", "data.train_ann": None}',
        ),
    ],
)
def test_settings_are_python(said, in_python):
    assert in_arguments(said, inspect.signature(function).parameters) == in_python
