"""Looks whether this machine and this home are fit to train, and packs what a helper needs to see of a run."""
