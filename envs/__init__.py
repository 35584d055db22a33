"""Environments, their reference scores, and the embedded task families."""
