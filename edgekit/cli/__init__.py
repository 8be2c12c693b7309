"""The command line: verbs only; the one place that prints and exits."""
