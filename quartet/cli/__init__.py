"""The command line: quartet serve | chat | ps | simulate | advise."""
