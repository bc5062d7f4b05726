"""Train step, loop, optimizer and checkpoints."""
