"""The site that `make docs` builds, of docs/, benchmarks/ and two pages at the root.

The root of the repository is the source folder, so that links are the same here as where the files
are read as they are: to pages, and to configs and measurements, which can be downloaded.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = 'mmffnet'
author = 'the authors of mmffnet'
copyright = author
source = (ROOT / 'mmffnet' / 'version.py').read_text(encoding='utf-8')
release = re.findall(r"__version__ = '(.+)'", source)[0]

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]
root_doc = 'docs/index'
include_patterns = ['docs/*.md', 'benchmarks/**.md', 'CHANGELOG.md', 'CONTRIBUTING.md']
# so that nothing looks for pages in environments, data and results
exclude_patterns = [
    path.name
    for path in ROOT.iterdir()
    if path.is_dir() and path.name not in ('docs', 'benchmarks')
]
myst_heading_anchors = 3
default_role = 'literal'
toc_object_entries_show_parents = 'hide'
autodoc_member_order = 'bysource'
autodoc_inherit_docstrings = False
autodoc_typehints = 'none'  # the docstrings have them
html_theme = 'furo'
html_title = f'{project} {release}'
html_static_path = ['static']
html_css_files = ['site.css']
html_extra_path = ['root']
html_copy_source = False
html_show_search_summary = False  # it fetches pages, which browsers refuse for files
