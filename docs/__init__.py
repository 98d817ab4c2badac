"""The documentation: pages, what generates some of them, and what MkDocs is told."""
