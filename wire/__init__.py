"""What clients and services must agree on. No I/O happens in this package."""
