"""The page at `/`: one HTML file, the stream that feeds it, and the deaths that it may cause in a demonstration."""
