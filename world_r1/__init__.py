"""world-r1: reinforcement learning with 3D rewards for text-to-video models. Importing this loads neither torch nor ray."""

__version__ = "0.1.0"
