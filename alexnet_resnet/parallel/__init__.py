"""How the work is laid over devices."""
