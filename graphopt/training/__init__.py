"""Training: engines that run a step model, data, schedules, checkpoints, metrics, and the loop over epochs."""
