"""The unfused ops: logits of window slots, and what they weigh, both by the tiles of the others."""
