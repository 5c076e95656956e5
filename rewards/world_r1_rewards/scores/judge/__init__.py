"""Scores made of the answers of vision-language models."""
