"""The base of all other packages: types, collectives, the mesh, per-worker programs, the registry, the guard."""
