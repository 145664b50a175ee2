"""Whole experiments of the papers."""
