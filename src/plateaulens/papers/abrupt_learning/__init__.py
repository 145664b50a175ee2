"""Abrupt learning (arXiv 2506.13688): recipes and what only this paper needs."""
