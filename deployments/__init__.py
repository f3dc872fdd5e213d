"""Deployments, automations and presets of configuration."""
