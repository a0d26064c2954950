"""What is kept: tables and queries (the only place that speaks SQL), and content-addressed files."""
