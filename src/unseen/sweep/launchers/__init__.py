"""Where jobs run; each launcher is called with frozen jobs and gives what became of them."""
