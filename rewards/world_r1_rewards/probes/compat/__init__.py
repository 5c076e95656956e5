"""What the formulas of `scores.compat` look at: other people's public releases, known defects included, for comparison only."""
