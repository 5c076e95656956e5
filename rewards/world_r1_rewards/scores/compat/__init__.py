"""Formulas of other people's public releases, for comparison only: known defects included, never a default."""
