"""Sphinx: the pages of this folder and the reference of the public Python names, as one site without a network."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported; a build must not take a GPU, nor more threads than a small machine has.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

import hitdet_nni

project = "hitdet_nni"
author = "the authors of hitdet_nni"
release = hitdet_nni.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"hitdet_nni {release}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

# GitHub's rule for the anchors of headings, so that `page.md#heading` means the same there and here.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": "model_config"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shape", "Source"]
napoleon_use_ivar = True
python_use_unqualified_type_names = True


def name_folders(app: Sphinx, doctree: nodes.document) -> None:
    """Leave links to folders of the repository as text: a site of pages has nothing to show for them."""
    here = Path(app.env.doc2path(app.env.docname)).parent
    for node in list(doctree.findall(pending_xref)):
        if node.get("reftype") == "myst" and (here / node["reftarget"]).is_dir():
            node.replace_self(node.children)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the above."""
    app.connect("doctree-read", name_folders)
    return {"parallel_read_safe": True}
