"""Where MTV runs: services of one machine, images, compose file."""
