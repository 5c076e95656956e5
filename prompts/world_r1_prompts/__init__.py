"""Camera vocabulary, prompt curation and the text-only data set."""
