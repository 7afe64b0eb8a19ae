"""The commands of `jaxdist`: what each option means, and what is printed."""
