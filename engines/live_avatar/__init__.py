"""Live Avatar: what the launch scripts need beside upstream's own programs."""
