"""Readers: one file for each layout on disk.

Inside: the contract (`reader`), TBX11K as published (`tbx11k`, with its boxes in `coco`) and Kaggle's copy of it
(`tbx11k_kaggle`). To add a layout, write a class as `reader.Reader` says and list it in `READERS`. Imports
`data.records` alone. Start reading at `reader`.
"""

from tbkd_utils.data.readers.reader import Reader
from tbkd_utils.data.readers.tbx11k import Tbx11k
from tbkd_utils.data.readers.tbx11k_kaggle import Tbx11kKaggle

__all__ = ["READERS", "Reader", "Tbx11k", "Tbx11kKaggle"]

READERS: tuple[type[Reader], ...] = (Tbx11k, Tbx11kKaggle)
"""Every layout, in the order in which a folder is tried."""
