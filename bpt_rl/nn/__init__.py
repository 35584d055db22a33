"""Modules that own parameters, thin over `bpt_rl.ops`."""
