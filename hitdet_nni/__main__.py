"""``python -m hitdet_nni`` is ``hitdet-nni``; this form is what ``torchrun`` starts."""

from __future__ import annotations

import sys

from hitdet_nni.cli import main

sys.exit(main())
