"""Pictures of a site."""
