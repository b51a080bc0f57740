"""Helpers behind the tbkd notebooks: weakly supervised tuberculosis localisation by knowledge distillation.

The package reproduces, and goes beyond, arXiv 2512.11057. Data flows one way through its modules:
recipe -> dataset -> preprocess -> training -> heatmaps -> boxes -> scores -> figures.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tbkd-utils")
except PackageNotFoundError:  # imported straight from a source folder
    __version__ = "0+unknown"
