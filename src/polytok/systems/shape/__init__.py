"""Systems for 3D shapes."""
