"""Jobs: each one assembles settings, data, steps and reports, without mathematics."""
