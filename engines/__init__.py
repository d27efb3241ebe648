"""What makes videos: programs that the service runs through scripts, never imports."""
