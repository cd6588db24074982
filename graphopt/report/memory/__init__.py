"""Reports on the memory of programs: the account of bytes, memory over time, memory against time."""
