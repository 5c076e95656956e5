"""Measurements of the kernels: speed on the machine at hand, and error against exact attention."""
