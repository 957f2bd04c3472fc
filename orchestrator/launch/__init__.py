"""Decides what a job left open, and starts, watches and stops its attempts."""
