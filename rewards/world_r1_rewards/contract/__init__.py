"""The contract of rewards and probes as a test suite that anyone can run on their own:

pytest --pyargs world_r1_rewards.contract --reward acme.rewards:Sharpness --probe acme.probes:Depth
"""
