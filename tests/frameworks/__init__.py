"""The recipes for frameworks in docs/examples/ai, each in a process of its own with the framework's environment."""
