"""Tools that every room uses and none owns."""
