"""What the compiler hands to the runtime: the Program, its checks, its schedule, and its files."""
