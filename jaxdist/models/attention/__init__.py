"""Attention over sequences that may be divided among the devices of a worker."""

from jaxdist.models.attention.attend import Attention, attend, attention_by
from jaxdist.models.attention.zigzag import local, positions

__all__ = ['Attention', 'attend', 'attention_by', 'local', 'positions']
