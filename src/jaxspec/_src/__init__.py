"""Private. Each folder is a layer and uses those below it only: see docs/architecture.md."""
