"""What a person runs: each module is one command, `unseen <command>`."""
