"""Synthetic radiographs: drawings with known lesions and a known shortcut, one file for each thing drawn.

Inside: a chest (`chest`), what is wrong with it (`lesions`), one radiograph (`sample`), a whole set in TBX11K's layout
(`dataset`), persons with pneumonia in Kermany's (`pneumonia`) and eight findings in that of NIH ChestX-ray14
(`findings`). Start reading at `dataset`.
"""
