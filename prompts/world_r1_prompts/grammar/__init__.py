"""What writes prompts: `scenes` (hand-written sentences by subject), `shots` (camera moves), `compose` (prompts)."""
