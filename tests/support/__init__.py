"""What several tests share, and tools with them."""
