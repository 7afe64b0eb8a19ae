"""Independent learners: each trains by its own clock, and a synchroniser merges what has arrived.

Decoupled DiLoCo (Douillard et al. 2026, arXiv 2604.21428): a round closes when a quorum of the learners has arrived,
so that slow, lost and returning machines hold nobody up.
"""
