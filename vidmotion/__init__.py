"""vidmotion: systems that learn to separate motion from content in video."""
