"""How the documentation is built: `sphinx-build -W docs docs/_build/html`, without a network."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
)  # of the kernels
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import importlib.metadata  # noqa: E402

project, author = "jaxact", "the authors of jaxact"
copyright = f"2026, {author}"  # Sphinx's name
version = release = importlib.metadata.version("jaxact")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "docstrings",
    "mathml",
    "generated",
]
exclude_patterns = ["_build", "_ext", "_generated", "gallery/runs", "jupyter_execute"]

# --- Pages ------------------------------------------------------------------------------------------------------

html_theme = "sphinx_book_theme"
html_title = "jaxact"
html_static_path = ["_static"]
html_css_files = ["jaxact.css"]
html_theme_options = {"show_toc_level": 1, "use_download_button": False, "use_fullscreen_button": False}
html_theme_options["navbar_persistent"] = []  # the search field stands in the sidebar
html_math_renderer = "mathml"
html_last_updated_fmt = ""
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3

# --- Notebooks --------------------------------------------------------------------------------------------------

nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

# --- The reference, from docstrings -----------------------------------------------------------------------------

default_role = "code"
autoclass_content = "both"  # what a class is, and what it is made from
autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_type_aliases = {}
napoleon_use_rtype = False
napoleon_use_ivar, napoleon_attr_annotations = True, False
napoleon_google_docstring, napoleon_numpy_docstring = True, False
add_module_names = False
