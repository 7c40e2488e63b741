"""Many runs: trials of a study, and chains of runs."""
