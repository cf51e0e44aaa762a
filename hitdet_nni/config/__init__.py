"""What a user may set: settings, skeleton, search space, architecture, and the files that are shipped."""
