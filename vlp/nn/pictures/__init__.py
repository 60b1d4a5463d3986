"""Coders: pictures as grids of numbers of codes, and back."""
