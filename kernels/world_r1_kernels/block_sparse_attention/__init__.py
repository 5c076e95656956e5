"""Adaptive block-sparse attention (BLADE's ASA): a binary mask of 128x128 blocks, optionally with pooled global tokens.

One operator with pyramid attention: a mask is a plan with levels 1 and 0, the global tokens are rest tokens seen everywhere. Both
parts share one softmax, so the gradient through their log-sum-exp is kept, and nothing is rounded between them.
"""

from world_r1_kernels.block_sparse_attention.api import adaptive_mask, block_sparse_attention, mask_plan

__all__ = ["adaptive_mask", "block_sparse_attention", "mask_plan"]
