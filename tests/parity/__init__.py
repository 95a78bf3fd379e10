"""Stock against grid, pixel by pixel."""
