"""What components do together: interactions inside a set, and each member's share."""
