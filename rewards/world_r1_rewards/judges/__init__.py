"""Judges: vision-language models that answer one question about a clip with one token. See rewards/README.md, Judges."""
