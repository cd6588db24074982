"""Rules of normalize for operators of the domain com.microsoft."""
