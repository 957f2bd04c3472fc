"""Takes a job from its submission to its end."""
