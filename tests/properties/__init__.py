"""Properties of presses in caches and of measuring, and state machines."""
