"""Learned quality models: CLIP and its fine-tuned relatives, and Qwen2-VL reward models. See rewards/README.md, Quality."""
