"""What spans the stages: whole runs from one config, the demo, prediction on own videos, reports, a doctor."""

__version__ = "0.1.0"
