"""Helpers behind the tbkd notebooks: where a network that saw only weak labels looks, and what a blind guess knows.

The package reproduces, and goes beyond, arXiv 2512.11057. Its rooms import downwards only: `systems` and `views` over
`experiments`, over `localization` and `curvature`, over `models`, over `data`, over `metrics` and `runs`, over
`errors`.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tbkd-utils")
except PackageNotFoundError:  # imported straight from a source folder
    __version__ = "0+unknown"

from tbkd_utils import systems as systems
