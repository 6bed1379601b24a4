"""Real images: read once, and drawn as a function of seed, replicate and step."""
