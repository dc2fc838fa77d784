"""Figures of the package: its size, its imports, and the modules that a request passes."""
