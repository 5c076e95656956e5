"""Probes (video -> evidence) and scores (evidence + prompt -> number or None). Loaded by name; see rewards/README.md."""
