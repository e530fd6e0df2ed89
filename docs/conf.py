"""The documentation site: `python -m sphinx -W docs docs/_build`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import benchmark_page  # noqa: E402
import cli_page  # noqa: E402
import error_page  # noqa: E402

project = "opq"
author = copyright = "the opq authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = "opq"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
nb_execution_mode = "off"  # the tests execute the notebooks; their outputs are stored
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
copybutton_prompt_text = "$ "
suppress_warnings = ["mystnb.unknown_mime_type"]

benchmark_page.write(HERE / "benchmarks.md", HERE.parent / "examples" / "bench" / "results")
error_page.write(HERE / "errors.md")
cli_page.write(HERE / "cli.md")
