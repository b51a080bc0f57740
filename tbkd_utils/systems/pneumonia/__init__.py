"""Pneumonia: seven networks, a patient-wise split, and where they look (arXiv 2511.00456).

Inside: what the system is (`declaration`, with `settings`, `presets`, `grid`, the paper's own `division`).
Start reading at `declaration`.
"""
