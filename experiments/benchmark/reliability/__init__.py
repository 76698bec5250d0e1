"""What must never happen, looked for: damage, kills, hours of requests. See docs/reliability.md."""
