"""What stands in for packages that are not installed, or that must not be loaded."""
