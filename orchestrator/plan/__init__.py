"""Hardware and prices."""
