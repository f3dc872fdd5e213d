"""What a model is trained on: pure losses, one module each, and the system that computes all of them in one forward."""
