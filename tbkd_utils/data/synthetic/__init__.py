"""Synthetic radiographs: drawings with known lesions and a known shortcut, one file for each thing drawn.

Inside: a chest (`chest`), what is wrong with it (`lesions`), one radiograph (`sample`), and a whole set in TBX11K's
layout (`dataset`). Start reading at `dataset`.
"""
