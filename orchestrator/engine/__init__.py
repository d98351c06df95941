"""Start, plan, advance and reconcile: everything that decides what happens next."""
