"""Two maps to numbers: agreement, bootstrap, spread over pairs."""
