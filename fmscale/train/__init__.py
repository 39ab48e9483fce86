"""Training: the engine that shards a model, the step, the loop around it, and what two runs have in common."""
