"""Sections `rewards` of a configuration by name, one YAML file each; see `rewards.compat`."""
