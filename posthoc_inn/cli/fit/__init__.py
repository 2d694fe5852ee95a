"""`posthoc-inn fit`."""
