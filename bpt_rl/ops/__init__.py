"""Pure functions on arrays: attention schedules and the blockwise parallel block."""
