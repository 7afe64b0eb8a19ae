"""What everything else stands on: types, collectives, the mesh, per-worker programs, the registry, the guard."""
