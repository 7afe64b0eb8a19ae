"""The commands of `jaxdist`: their options and their output."""
