"""The memory of a stage: lifetimes of its values, their places in the arena, and calls that run again."""
