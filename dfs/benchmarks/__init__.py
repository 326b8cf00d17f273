"""What ``dfs bench`` measures, and how: workloads, timing, figures, report."""
