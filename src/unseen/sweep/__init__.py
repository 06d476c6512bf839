"""Jobs of a sweep: what is done, what runs, what is to do; each job is a process of its own."""
