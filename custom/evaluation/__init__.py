"""How good translations are: every pair, baselines, metrics, statistics, and the results kept of them."""
