"""What a browser shows: pages without a build step, their scripts and styles beside them."""
