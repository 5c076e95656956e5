"""The grammar that writes scenes: `english` (words), `lexicon`, `sentences`, `shots` (camera moves), `compose` (prompts)."""
