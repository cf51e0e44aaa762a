"""Packaging. `search_spaces/`, `experiments/` and `baselines/` live at the top and travel inside the package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "hitdet_nni" / "__init__.py").read_text(encoding="utf-8"))[1]
FOLDERS = {f"hitdet_nni.{name}": name for name in ("search_spaces", "experiments", "baselines")}
DATA = ["*.yml", "*.json", "*/*.yml", "*/*.json"]

setup(
    name="hitdet-nni",
    version=VERSION,
    description="Hit-Detector on NNI: backbone, neck and head of an object detector searched together",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10,<3.15",
    packages=[*find_packages(include=["hitdet_nni", "hitdet_nni.*"]), *FOLDERS],
    package_dir={"hitdet_nni": "hitdet_nni", **FOLDERS},
    package_data={
        "hitdet_nni": ["py.typed"],
        "hitdet_nni.kernels.gpu": ["*.json"],
        "hitdet_nni.integration.launcher": ["*.js"],
        "hitdet_nni.report": ["templates/*"],
        "hitdet_nni.search_spaces": DATA,
        "hitdet_nni.experiments": DATA,
        "hitdet_nni.baselines": [*DATA, "*.py"],
    },
    entry_points={"console_scripts": ["hitdet-nni = hitdet_nni.cli:main"]},
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "nni==3.0",
        "setuptools<81",  # nnictl imports pkg_resources
        "pytorch_lightning>=2.2,<3",
        "mmdet==3.3.0",
        "mmcv-lite==2.1.0",
        "mmengine==0.10.7",
        "pycocotools>=2.0.7",
        "pydantic>=2.6,<3",
        "pyyaml>=6",
        "rich>=13",
        "scikit-learn>=1.3",
        "numpy>=1.26",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "scipy>=1.15",
        "matplotlib>=3.7",
        "psutil>=5.9",
        "pillow>=10",
    ],
    extras_require={
        "enas": ["tianshou==0.4.11", "gym==0.26.2"],  # NNI's reinforcement learning
        "tensorboard": ["tensorboard>=2.16"],
        "mlflow": ["mlflow-skinny>=2.16", "sqlalchemy>=2", "alembic>=1.13"],
        "wandb": ["wandb>=0.30"],
        "openvino": ["openvino>=2024.4"],
        "onnx": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"],
    },
)
