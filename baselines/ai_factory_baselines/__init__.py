"""Rules and planners for ai-factory-gym; each has the ``predict`` method that learned agents have."""
