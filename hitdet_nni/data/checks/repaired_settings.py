"""The options by which a command uses annotation files that were corrected."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from hitdet_nni.config.data_settings import DataSettings
from hitdet_nni.data.checks.repair import Repaired
from hitdet_nni.data.layouts.parts import SPLITS


def settings_of(repaired: Sequence[Repaired], settings: DataSettings) -> list[str]:
    """Return the options by which a command with these settings uses the corrected files."""
    # A config may name embedded images that only the folder has taken the place of.
    gone = [key for key in ("builtin", "root", "layout") if getattr(settings, key) is not None]
    if "root" in gone and "builtin" not in gone:
        gone.insert(0, "builtin")
    options = [f"--set data.{key}=null" for key in gone]
    named = bool(options)  # the folders of images have to be
    for split in SPLITS:
        found = [each for each in repaired if each.split == split]
        values = {"ann": [str(each.file.absolute()) for each in found]}
        if named:
            values["images"] = [str(each.images.absolute()) for each in found]
        for key, paths in values.items():
            value = paths[0] if len(paths) == 1 else json.dumps(paths)
            options.append(f"--set {shlex.quote(f'data.{split}_{key}={value}')}")
    return options
