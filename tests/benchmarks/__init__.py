"""Speed as ratios: ours beside a raw driver loop and the closest peer, on one PostgreSQL, in one run (`make bench`)."""
