"""How any task is trained: state, step, optimizer, devices, loop, evaluation."""
