"""What a run leaves behind: its environment, its record, its table, its dashboards. Knows no models."""
