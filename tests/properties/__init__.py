"""Properties of presses in caches and of measurements, and state machines."""
