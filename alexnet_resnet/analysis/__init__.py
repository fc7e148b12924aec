"""What a network or a run looks like from outside: tables and figures."""
